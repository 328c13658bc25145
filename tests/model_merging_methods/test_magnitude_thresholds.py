"""The k-th smallest magnitude is the one that sorting finds."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_merging_methods.magnitude_thresholds import kth_smallest_magnitudes

numbers = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0])


@given(st.lists(numbers, min_size=1, max_size=40), st.integers(1, 7), st.data())
@settings(deadline=None)
def test_it_is_what_sorting_finds(drawn, block_size, data):
    k = data.draw(st.integers(0, len(drawn)))
    first, second = torch.tensor(drawn), torch.tensor(drawn).flip(0) * 0.5

    def map_blocks(count):
        for start in range(0, len(drawn), block_size):
            yield count([first[start : start + block_size], second[start : start + block_size]])

    thresholds = kth_smallest_magnitudes(map_blocks, [k, len(drawn)])
    assert thresholds[0] == (first.abs().sort().values[k - 1].item() if k else None)
    assert thresholds[1] == second.abs().max().item()
