"""The largest magnitudes of a tensor, and the last of equal ones, are those that sorting gives, from any bracket."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from model_merging_methods.kernels.magnitude_thresholds import LARGEST_PATTERN, Bracket
from model_merging_methods.kernels.tensor_search import UNSAMPLED, Table, TensorSearch
from model_merging_methods.largest_magnitudes import LargestOf

magnitudes = st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0]) | st.floats(0, 2.0**100, width=32)
patterns = st.integers(0, LARGEST_PATTERN) | st.sampled_from(np.float32([0, 0.5, 1, 2]).view(np.int32).tolist())


@st.composite
def brackets(draw) -> Bracket:
    low, high = sorted([draw(patterns), draw(patterns)])
    return draw(st.sampled_from([UNSAMPLED, Bracket(low, low), Bracket(low, high), Bracket.between(low, high)]))


def run(search: TensorSearch, values: np.ndarray, block_size: int) -> int:
    """Make passes over a tensor's magnitudes, float32 [K, n], until the search is done. Returns their number."""
    passes = 0
    while not search.done:
        passes += 1
        for place, start in enumerate(range(0, values.shape[1], block_size)):
            block = values[search.models, start : start + block_size].view(np.int32)
            lows, highs, shifts = (np.array(one)[:, None] for one in search.brackets)
            inside = (block >= lows) & (block < highs)
            counts = np.stack([(block < lows).sum(1), inside.sum(1), (block <= highs).sum(1)], 1)
            bins = (block - lows) >> shifts
            tables = [Table.of(own[here]) for own, here in zip(bins, inside, strict=True)]
            is_last = search.add(place, counts, tables)
        assert is_last
        search.conclude()
    return passes


@given(st.data(), st.integers(1, 3), st.integers(1, 40), st.integers(1, 9))
@settings(deadline=None, max_examples=300)
def test_thresholds_and_ties_are_those_that_sorting_gives(data, models, n, block_size):
    drawn = data.draw(st.lists(st.lists(magnitudes, min_size=n, max_size=n), min_size=models, max_size=models))
    values = np.array(drawn, np.float32)
    wanted = data.draw(
        st.lists(st.builds(LargestOf, st.integers(0, models - 1), st.integers(1, n)), min_size=1, max_size=4)
    )
    search = TensorSearch(wanted, n, -(-n // block_size))
    search.start([data.draw(brackets()) for _ in wanted])
    run(search, values, block_size)
    for one, found in zip(wanted, search.found, strict=True):
        threshold = np.sort(values[one.model])[n - one.number]
        assert found.threshold == threshold
        assert found.counting == one.number - np.count_nonzero(values[one.model] > threshold)
        equal = [np.count_nonzero(values[one.model, i : i + block_size] == threshold) for i in range(0, n, block_size)]
        assert found.equal.tolist() == equal


def test_a_bracket_around_the_threshold_leaves_one_pass():
    values = np.abs(np.random.default_rng(0).standard_normal((1, 10_000))).astype(np.float32)
    middle = int(np.sort(values[0])[5000].view(np.int32))
    search = TensorSearch([LargestOf(0, 5000)], 10_000, 10)
    search.start([Bracket(middle - 1000, middle + 1000)])
    assert run(search, values, 1000) == 1
    assert search.found[0].threshold == np.sort(values[0])[5000]
