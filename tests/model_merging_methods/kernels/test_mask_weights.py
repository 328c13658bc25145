"""DARE's masks: what share they drop, what they depend on, and what remains."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_merging_methods.kernels.mask_weights import apply_mask, magnitude_keep_mask, random_drop_mask
from model_merging_methods.merge_request import mask_key

KEY = mask_key(0, "math", "model.layers.0.mlp.up_proj.weight")


def assert_share(number: int, n: int, rate: float) -> None:
    assert abs(number - n * rate) <= 4 * math.sqrt(n * rate * (1 - rate)), "four standard errors"


@pytest.mark.parametrize("rate", [0.0, 1e-5, 0.001, 0.1, 1 / 3, 0.5, 0.9, 0.999, 1.0])
def test_the_share_dropped_is_the_drop_rate(rate):
    for name in ("a", "b", "c"):
        assert_share(random_drop_mask(mask_key(7, "code", name), 3, 2_000_003, rate).sum().item(), 2_000_000, rate)


def test_rates_finer_than_16_bits_are_kept():
    rate, n = 3.4 / 65536, 30_000_000  # this n distinguishes 3.4 from 3
    assert_share(random_drop_mask(KEY, 0, n, rate).sum().item(), n, rate)


@given(st.lists(st.integers(1, 999), max_size=6))
def test_a_value_s_mask_depends_on_its_position_alone(cuts):
    edges = [0, *sorted(set(cuts)), 1000]
    pieces = [random_drop_mask(KEY, a, b, 0.3) for a, b in pairwise(edges)]
    assert torch.equal(torch.cat(pieces), random_drop_mask(KEY, 0, 1000, 0.3))


def test_other_seeds_models_tensors_and_positions_are_independent():
    n = 1_000_000
    mask = random_drop_mask(mask_key(0, "math", "w"), 0, n, 0.5)
    for other in (mask_key(1, "math", "w"), mask_key(0, "code", "w"), mask_key(0, "math", "v")):
        assert_share((random_drop_mask(other, 0, n, 0.5) == mask).sum().item(), n, 0.5)
    for distance in (1, 2, 3, 4, 5, 8, 64):
        assert_share((mask[distance:] == mask[:-distance]).sum().item(), n - distance, 0.5)


def test_masks_stay_the_same_from_version_to_version():
    """A merge record promises the same bytes."""
    dropped = random_drop_mask(mask_key(0, "math", "lm_head.weight"), 0, 64, 0.5).nonzero().squeeze(1).tolist()
    expected = "2 6 8 9 11 12 15 16 18 19 22 23 25 28 29 30 31 32 33 34 40 42 47 48 55 56 61 63"
    assert dropped == list(map(int, expected.split()))


def test_survivors_are_rescaled_and_the_expectation_kept():
    block = torch.ones(1_000_000)
    masked = apply_mask(block, random_drop_mask(KEY, 0, len(block), 0.2), 0.2, use_weight_rescale=True)
    assert set(masked.unique().tolist()) == {0.0, torch.tensor(1.0).div(0.8).item()}
    assert masked.mean().item() == pytest.approx(1.0, abs=4 * math.sqrt(0.25 / len(block)))
    assert apply_mask(block, torch.ones(len(block), dtype=torch.bool), 1.0, True).eq(0).all()
    assert apply_mask(block, random_drop_mask(KEY, 0, len(block), 0.2), 0.2, False).max() == 1


def test_magnitude_masks_keep_what_is_between_two_sets_of_largest_values():
    block = torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.0])
    above_1_and_the_first_at_1 = magnitude_keep_mask(block, 10, (1.0, 11, math.inf, -1))
    assert above_1_and_the_first_at_1.tolist() == [True, True, False, False, True]
    assert magnitude_keep_mask(block, 10, (1.0, 14, 2.0, -1)).tolist() == [False, True, False, True, True]
    assert magnitude_keep_mask(block, 10, (-1.0, -1, math.inf, -1)).all()
