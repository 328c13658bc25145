"""Intervals: where the figure lies in them, and what pairing does to them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.intervals import drop_rate_interval, mean_interval, paired_difference_interval, wilson_interval

ANSWERS = st.lists(st.booleans(), min_size=2, max_size=60)
PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60)
few = settings(max_examples=15, deadline=None)


def test_wilsons_interval_agrees_with_the_published_example():
    # Newcombe 1998, table I: 81 of 263, and 0 of 20.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


@few
@given(ANSWERS)
def test_a_mean_lies_in_its_interval(answers):
    low, high = mean_interval(answers)
    assert low <= sum(answers) / len(answers) <= high
    assert mean_interval(answers) == (low, high)


@few
@given(PAIRS)
def test_a_difference_lies_in_its_interval_and_changes_sign_with_the_order(pairs):
    first, second = zip(*pairs, strict=True)
    low, high = paired_difference_interval(first, second)
    assert low <= (sum(first) - sum(second)) / len(pairs) <= high
    assert paired_difference_interval(second, first) == pytest.approx((-high, -low))


def test_what_is_hard_for_both_does_not_widen_the_interval():
    first = [True] * 50 + [False] * 50
    second = [True] * 45 + [False] * 55
    low, high = paired_difference_interval(first, second)
    assert low >= 0 and high - low < 0.12
    shuffled_low, shuffled_high = paired_difference_interval(first, second[::-1])
    assert shuffled_high - shuffled_low > 3 * (high - low)


@pytest.mark.parametrize(("first", "second"), [([True], [True, False]), ([], [])])
def test_what_cannot_be_paired_is_an_error(first, second):
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference_interval(first, second)


@few
@given(PAIRS)
def test_a_drop_rate_lies_in_its_interval(pairs):
    before, after = zip(*pairs, strict=True)
    if not any(before):
        with pytest.raises(ValueError, match="no drop rate"):
            drop_rate_interval(before, after)
        return
    low, high = drop_rate_interval(before, after)
    assert low - 1e-9 <= (sum(before) - sum(after)) / sum(before) <= high + 1e-9
