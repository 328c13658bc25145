"""The rule by which a search chooses, and the difference of two candidates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.mixup_search.choice import best, comparable_scores, gains, mean_gain, paired_difference, pareto_front
from scripts.mixup_search.store import TEST, VALIDATION, Result

SIZES = {"gsm8k": 32, "MATH": 20}
ROLES = {"gsm8k": "math", "MATH": "math"}
DRAWS = ["draw 0", "draw 1", "draw 2"]


def results(candidate: str, gsm8k: tuple[int, int], math: tuple[int, int], part: str = VALIDATION) -> list[Result]:
    """Results from (examples, right) in each task."""
    return [Result(candidate, task, part, *of, 1.0, 0.0) for task, of in (("gsm8k", gsm8k), ("MATH", math))]


SMALL = [
    *results("math alone", (8, 4), (8, 4)),
    *results("draw 0", (8, 8), (8, 8)),
    *results("draw 1", (8, 5), (8, 5)),
    *results("draw 2", (8, 5), (8, 4)),
]


def compared(found: list[Result], sizes: dict[str, int] = SIZES) -> dict[str, dict[str, Result]]:
    return comparable_scores(found, DRAWS, [8, 32], sizes)


def chosen(found: list[Result], sizes: dict[str, int] = SIZES) -> str | None:
    return best(gains(compared(found, sizes), ROLES), DRAWS)


def test_the_largest_mean_gain_is_chosen_among_those_with_the_most_examples():
    assert chosen(SMALL) == "draw 0"
    large = [
        *results("math alone", (32, 16), (20, 10)),
        *results("draw 1", (32, 17), (20, 11)),
        *results("draw 2", (32, 21), (20, 9)),
    ]
    assert chosen(SMALL + large) == "draw 2"
    found = gains(compared(SMALL + large), ROLES)
    assert found["draw 2"] == pytest.approx({"gsm8k": 5 / 32, "MATH": -1 / 20})
    assert mean_gain(found["draw 2"]) == pytest.approx((5 / 32 - 1 / 20) / 2)
    assert found["math alone"] == {"gsm8k": 0, "MATH": 0}
    assert "draw 0" not in found


@pytest.mark.parametrize(
    ("first", "second"), [((9, 6), (7, 7)), ((7, 7), (9, 6)), ((13, 3), (11, 4)), ((11, 4), (13, 3))]
)
def test_in_a_tie_the_first_drawn_is_chosen(first, second):
    """20 examples against 10: 9/20 + 6/10 is 7/20 + 7/10, which floating point sums differently."""
    found = results("math alone", (20, 6), (10, 3))
    for name, (gsm8k, math) in (("draw 1", second), ("draw 0", first)):
        found += results(name, (20, gsm8k), (10, math))
    assert chosen(found, {"gsm8k": 20, "MATH": 10}) == "draw 0"


def test_a_draw_further_ahead_in_one_task_counts_with_its_scores_in_all():
    ahead = [*results("draw 2", (32, 30), (8, 4))[:1], *results("math alone", (32, 16), (8, 4))[:1]]
    assert compared(SMALL + ahead) == compared(SMALL)


@pytest.mark.parametrize(
    "found",
    [SMALL[:2], SMALL[2:], [*SMALL[2:], *results("math alone", (32, 16), (20, 10))], SMALL[:3]],
    ids=["no draw", "no fine-tune", "fine-tune on other examples", "draw in one task"],
)
def test_nothing_is_chosen_without_a_draw_and_the_fine_tune_on_the_same_examples(found):
    assert chosen(found) is None


def test_test_scores_do_not_influence_the_choice():
    lucky = [*results("math alone", (8, 0), (8, 0), TEST), *results("draw 2", (8, 8), (8, 8), TEST)]
    assert chosen(SMALL + lucky) == chosen(SMALL)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_a_candidate_is_on_the_front_or_beaten_by_one_on_it(found):
    scores = {f"draw {i}": of_tasks for i, of_tasks in enumerate(found)}
    front = pareto_front(scores)
    assert front
    for name, (first, second) in scores.items():
        beaten = any(
            scores[other] != scores[name] and scores[other][0] >= first and scores[other][1] >= second
            for other in front
        )
        assert beaten is (name not in front)


def test_a_paired_difference_is_over_the_examples_that_both_answered():
    first, second = {1: True, 2: True, 3: False, "x": True}, {1: False, 2: True, 3: False, "y": False}
    found = paired_difference([(first, second)], seed=0)
    assert (found.mean, found.low, found.examples) == (pytest.approx(1 / 3), 0, 3)
    same = paired_difference([(first, first), (second, second)], seed=1)
    assert same.mean == 0 and same.low < 0 < same.high
    assert found == paired_difference([(first, second)], seed=0)
    assert paired_difference([(first, second), ({}, second)], seed=0) is None
