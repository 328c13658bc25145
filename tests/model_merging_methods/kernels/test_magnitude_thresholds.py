"""The k-th smallest magnitude and the sum of signs are those that sorting gives, from any starting bracket."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_merging_methods.kernels.arithmetic import CompiledArithmetic
from model_merging_methods.kernels.counting_kernels import Undecided
from model_merging_methods.kernels.kernel_plan import StoredBlock
from model_merging_methods.kernels.magnitude_thresholds import (
    BINS,
    EVERYWHERE,
    LARGEST_PATTERN,
    Bracket,
    MagnitudeSample,
    ThresholdSearch,
)
from model_merging_methods.kernels.stored_dtypes import F32
from model_merging_methods.merge_parameters import parameters_of

numbers = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0])
patterns = st.integers(0, LARGEST_PATTERN) | st.sampled_from([0, int(np.float32(1).view(np.int32))])


@st.composite
def brackets(draw) -> Bracket:
    low, high = sorted([draw(patterns), draw(patterns)])
    return Bracket(low, min(high, low + draw(st.sampled_from([0, 1, 1000, BINS - 1]))))


def run(search: ThresholdSearch, values: np.ndarray, block_size: int) -> int:
    """Make passes over the models' values, float32 [K, n], until the search is done. Returns their number."""
    models, n = values.shape
    arithmetic = CompiledArithmetic(parameters_of("ties_merging"), models)
    passes = 0
    while not search.done:
        passes += 1
        for start in range(0, n, block_size):
            piece = values[:, start : start + block_size]
            stored = np.vstack([np.zeros(piece.shape[1], np.float32), piece])
            block = StoredBlock(
                start, piece.shape[1], stored.view(np.uint8), np.full(models + 1, F32), np.zeros(models, np.uint64),
                np.zeros((models, 5)),
            )  # fmt: skip
            most = models * block_size
            room = Undecided(
                np.empty(most, np.int16), np.empty(most, np.int32), np.empty(most, np.int8), np.empty(most, np.int8),
                np.empty((block_size, models), np.float32),
            )  # fmt: skip
            code, counts = arithmetic.count(block, search.brackets, True, room)
            assert code == 0
            search.add(counts)
        search.conclude()
    return passes


def sum_of_signs(values: np.ndarray, thresholds: list[float | None]) -> int:
    bounds = np.array([[t or 0.0] for t in thresholds], np.float32)
    total = np.zeros(values.shape[1], np.float32)
    for row in np.where(np.abs(values) >= bounds, values, np.float32(0)):
        total += row
    return int(np.sign(total).sum())


@given(st.data(), st.integers(2, 4), st.integers(1, 40), st.integers(1, 7))
@settings(deadline=None)
def test_thresholds_and_signs_are_those_that_sorting_gives(data, models, n, block_size):
    drawn = data.draw(st.lists(st.lists(numbers, min_size=n, max_size=n), min_size=models, max_size=models))
    values = np.clip(np.array(drawn, np.float32), -1e37, 1e37)
    ranks = data.draw(st.lists(st.integers(0, n), min_size=models, max_size=models))
    start = data.draw(st.lists(brackets() | st.just(EVERYWHERE), min_size=models, max_size=models))
    search = ThresholdSearch(ranks, start, with_signs=True)
    run(search, values, block_size)
    expected = [float(np.sort(np.abs(row))[k - 1]) if k else None for row, k in zip(values, ranks, strict=True)]
    assert search.thresholds == expected
    assert search.sum_of_signs == sum_of_signs(values, expected)


@pytest.mark.parametrize("ties", [False, True], ids=["all different", "few different magnitudes, many zeros"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_sample_leaves_one_pass(ties, share):
    generator = np.random.default_rng(0)
    values = generator.standard_normal((2, 1 << 20)).astype(np.float32)
    if ties:
        values = np.round(values * 4) / np.float32(4)
    samples = [MagnitudeSample([np.abs(row[i : i + 128]) for i in range(0, len(row), 1024)]) for row in values]
    rank = int(values.shape[1] * share)
    search = ThresholdSearch([rank, rank], [sample.bracket(share) for sample in samples], with_signs=True)
    assert run(search, values, 1 << 17) == 1
    assert search.thresholds == [float(np.sort(np.abs(row))[rank - 1]) for row in values]
    assert search.sum_of_signs == sum_of_signs(values, search.thresholds)
