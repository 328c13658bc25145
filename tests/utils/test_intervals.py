"""Intervals: they contain the figure, cover the truth as often as they claim, and use the pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.intervals import (
    drop_rate_interval,
    mean_interval,
    mean_ratio_interval,
    mean_ratio_of_draws_interval,
    paired_difference_interval,
    wilson_interval,
)

PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60)
few = settings(max_examples=15, deadline=None)


def test_wilsons_interval_agrees_with_the_published_example():
    # Newcombe 1998, table I: 81 of 263, and 0 of 20.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(0, 0) == mean_interval([]) == (0, 1)


@pytest.mark.parametrize("examples", [1, 2, 20])
@pytest.mark.parametrize("value", [0, 0.5, 1])
def test_equal_values_have_an_interval_with_a_width(examples, value):
    alike, nothing, right = [value] * examples, [0] * examples, [1] * examples
    intervals = [
        (value, mean_interval(alike)),
        (value - 1, paired_difference_interval([([alike], [right])])),
        (value, paired_difference_interval([([alike] * 3, [nothing])])),
        (1 - value, drop_rate_interval([right], [alike])),
    ]
    for found, (low, high) in intervals:
        assert low <= found + 1e-9 and found - 1e-9 <= high and high - low > 0.1


@few
@given(PAIRS)
def test_each_figure_is_in_its_interval(pairs):
    first, second = zip(*pairs, strict=True)
    low, high = mean_interval(first)
    assert low <= sum(first) / len(first) <= high and mean_interval(first) == (low, high)
    low, high = paired_difference_interval([([first], [second])])
    assert low <= (sum(first) - sum(second)) / len(pairs) <= high
    # The samples differ, so an end may differ by one step.
    opposite = paired_difference_interval([([second], [first])])
    assert opposite == pytest.approx((-high, -low), abs=1.01 / len(pairs))
    if any(first):
        low, high = drop_rate_interval([first], [second])
        assert low - 1e-9 <= (sum(first) - sum(second)) / sum(first) <= high + 1e-9


def test_hard_examples_do_not_widen_the_interval_of_pairs():
    first, second = [True] * 50 + [False] * 50, [True] * 45 + [False] * 55
    low, high = paired_difference_interval([([first], [second])])
    assert low >= 0 and high - low < 0.12
    shuffled_low, shuffled_high = paired_difference_interval([([first], [second[::-1]])])
    assert shuffled_high - shuffled_low > 3 * (high - low)


@pytest.mark.parametrize(
    ("first", "second"), [([[True]], [[True, False]]), ([[]], [[]]), ([], [[True]]), ([[True], []], [[True]])]
)
def test_answers_that_cannot_be_paired_are_an_error(first, second):
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference_interval([(first, second)])
    with pytest.raises(ValueError, match="no drop rate"):
        drop_rate_interval(first, second)
    with pytest.raises(ValueError, match="no drop rate"):
        drop_rate_interval([[False, False]], [[True, False]])


@few
@given(PAIRS, st.integers(2, 4), st.integers(1, 4))
def test_draws_that_agree_on_every_example_count_as_one(pairs, of_first, of_second):
    first, second = zip(*pairs, strict=True)
    one = paired_difference_interval([([first], [second])])
    assert paired_difference_interval([([first] * of_first, [second] * of_second)]) == pytest.approx(one)
    if any(first):
        rates = drop_rate_interval([first], [second])
        assert drop_rate_interval([first] * of_first, [second] * of_first) == pytest.approx(rates)


@few
@given(st.permutations([True, False]) | st.permutations([True, False, True]), st.integers(1, 50))
def test_draws_that_differ_have_an_interval_even_if_their_examples_agree(draws, examples):
    """Each draw is right on all examples or on none: of up to three draws at least one sample in 27 is of one alone."""
    found = [[right] * examples for right in draws]
    assert paired_difference_interval([(found, [[True] * examples])]) == (min(draws) - 1, max(draws) - 1)
    assert drop_rate_interval([[True] * examples] * len(draws), found) == (1 - max(draws), 1 - min(draws))


def coverage(interval_of_draws) -> float:
    """How often an interval contains the mean over all possible draws, given 12 draws on 40 examples."""
    generator, held = np.random.default_rng(0), []
    for _ in range(60):
        ease, skill = generator.normal(size=40), generator.normal(size=(12, 1))
        low, high = interval_of_draws((ease + skill > 0).tolist())
        held.append(low <= 0.5 <= high)
    return float(np.mean(held))


def test_resampling_draws_and_examples_covers_the_truth_and_examples_alone_do_not():
    nothing, right = [[False] * 40], [[True] * 40] * 12
    assert coverage(lambda draws: paired_difference_interval([(draws, nothing)])) >= 0.88
    assert coverage(lambda draws: paired_difference_interval([([np.mean(draws, axis=0)], nothing)])) < 0.75
    assert coverage(lambda draws: drop_rate_interval(right, draws)) >= 0.88


def test_a_ratio_of_pairs_is_narrower_than_one_of_the_same_answers_unpaired():
    first, second = [True] * 60 + [False] * 40, [True] * 80 + [False] * 20
    low, high = mean_ratio_interval([[(first, second)]])
    assert low < 60 / 80 < high
    unpaired_low, unpaired_high = mean_ratio_interval([[(first[::-1], second)]])
    assert unpaired_high - unpaired_low > high - low


def test_a_mean_of_ratios_weighs_groups_alike_and_keeps_scores_without_answers():
    fixed, sampled = ([0.3], [0.6]), ([True] * 30 + [False] * 10, [True] * 40)
    assert mean_ratio_interval([[fixed]]) == pytest.approx((0.5, 0.5))
    low, high = mean_ratio_interval([[fixed], [sampled]])
    alone_low, alone_high = mean_ratio_interval([[sampled]])
    assert (low, high) == pytest.approx(((0.5 + alone_low) / 2, (0.5 + alone_high) / 2), abs=0.02)
    with pytest.raises(ValueError, match="cannot be paired"):
        mean_ratio_interval([[([1.0], [1.0, 0.0])]])


def test_a_constant_ratio_of_draws_has_wilsons_interval():
    nothing, half = [0.0] * 30, [1.0] * 15 + [0.0] * 15
    low, high = mean_ratio_of_draws_interval([([nothing], [half])])
    assert (low, high) == wilson_interval(0, 15) and high > 0.1
    assert mean_ratio_of_draws_interval([([half], [half])]) == wilson_interval(15, 15)
