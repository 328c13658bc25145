"""The rule by which a search chooses, and how sure it is of a difference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.mixup_search.candidate import TEST, VALIDATION, Result
from scripts.mixup_search.choice import (
    best,
    comparable_scores,
    gains,
    latest_scores,
    mean_gain,
    paired_difference,
    pareto_front,
)

SIZES = {"gsm8k": 32, "MATH": 20}
FINETUNED = {"gsm8k": "math alone", "MATH": "math alone"}


def result(candidate: str, task: str, examples: int, right: int, part: str = VALIDATION) -> Result:
    return Result(candidate, task, part, examples, right, 1.0, 0.0)


def both(candidate: str, gsm8k: tuple[int, int], math: tuple[int, int]) -> list[Result]:
    return [result(candidate, "gsm8k", *gsm8k), result(candidate, "MATH", *math)]


SMALL = [
    *both("math alone", (8, 4), (8, 4)),
    *both("draw 0", (8, 8), (8, 8)),
    *both("draw 1", (8, 5), (8, 5)),
    *both("draw 2", (8, 5), (8, 4)),
]
DRAWS = ["draw 0", "draw 1", "draw 2"]


def chosen(results: list[Result]) -> str | None:
    return best(gains(comparable_scores(results, VALIDATION, DRAWS, SIZES), FINETUNED), DRAWS)


def test_the_largest_mean_gain_is_chosen_among_those_with_the_most_examples():
    assert chosen(SMALL) == "draw 0"
    large = [
        *both("math alone", (32, 16), (20, 10)),
        *both("draw 1", (32, 17), (20, 11)),
        *both("draw 2", (32, 21), (20, 9)),
    ]
    assert chosen(SMALL + large) == "draw 2"
    found = gains(comparable_scores(SMALL + large, VALIDATION, DRAWS, SIZES), FINETUNED)
    assert found["draw 2"] == pytest.approx({"gsm8k": 5 / 32, "MATH": -1 / 20})
    assert mean_gain(found["draw 2"]) == pytest.approx((5 / 32 - 1 / 20) / 2)
    assert found["math alone"] == {"gsm8k": 0, "MATH": 0}
    assert "draw 0" not in found


def test_of_equal_gains_the_first_drawn_is_chosen():
    equal = [*both("math alone", (8, 4), (8, 4)), *both("draw 1", (8, 5), (8, 6)), *both("draw 2", (8, 6), (8, 5))]
    assert chosen(equal) == "draw 1"
    assert chosen(equal[::-1]) == "draw 1"


def test_gains_that_are_equal_but_for_rounding_are_equal():
    """20 examples against 10: 3/20 + 3/10 is 1/20 + 4/10."""
    sizes, finetuned = {"gsm8k": 20, "MATH": 10}, {"gsm8k": "math alone", "MATH": "math alone"}
    for first, second in (((9, 6), (7, 7)), ((7, 7), (9, 6)), ((13, 3), (11, 4)), ((11, 4), (13, 3))):
        results = [*both("math alone", (20, 6), (10, 3))]
        for name, (gsm8k, math) in (("draw 0", first), ("draw 1", second)):
            results += both(name, (20, gsm8k), (10, math))
        draws = ["draw 0", "draw 1"]
        assert best(gains(comparable_scores(results, VALIDATION, draws, sizes), finetuned), draws) == "draw 0"


def test_a_draw_that_has_gone_further_in_one_task_is_compared_by_what_it_has_in_all():
    ahead = [result("draw 2", "gsm8k", 32, 30), result("math alone", "gsm8k", 32, 16)]
    assert comparable_scores(SMALL + ahead, VALIDATION, DRAWS, SIZES) == comparable_scores(
        SMALL, VALIDATION, DRAWS, SIZES
    )


def test_nothing_is_chosen_without_a_draw_or_the_fine_tune_on_the_same_examples():
    assert chosen([]) is None
    assert chosen(SMALL[:2]) is None
    assert chosen(SMALL[2:]) is None
    assert chosen([*SMALL[2:], *both("math alone", (32, 16), (20, 10))]) is None
    assert chosen(SMALL[:3]) is None, "it has no score in the other task"


def test_test_scores_play_no_part():
    lucky = [result(name, task, 8, 8, TEST) for name in ("math alone", "draw 2") for task in SIZES]
    assert chosen(SMALL + lucky) == chosen(SMALL)
    assert latest_scores(SMALL + lucky, TEST).keys() == {"math alone", "draw 2"}


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_each_candidate_is_on_the_front_or_beaten_by_one_that_is(found):
    scores = {f"draw {i}": of_tasks for i, of_tasks in enumerate(found)}
    front = pareto_front(scores)
    assert front
    for name, (first, second) in scores.items():
        beaten = any(
            scores[other] != scores[name] and scores[other][0] >= first and scores[other][1] >= second
            for other in front
        )
        assert beaten is (name not in front)


def answers(right: np.ndarray) -> dict[int, bool]:
    return dict(enumerate(right.tolist()))


def test_a_paired_difference_is_meant_over_the_examples_that_both_answered():
    first, second = {1: True, 2: True, 3: False, "x": True}, {1: False, 2: True, 3: False, "y": False}
    found = paired_difference([(first, second)], seed=0)
    assert (found.mean, found.examples) == (pytest.approx(1 / 3), 3)
    assert found.low == 0
    assert found == paired_difference([(first, second)], seed=0)
    assert paired_difference([(first, second), ({}, second)], seed=0) is None


def test_no_difference_where_the_answers_are_the_same():
    same = answers(np.arange(50) % 3 == 0)
    found = paired_difference([(same, same), (same, same)], seed=1)
    assert found.mean == 0 and found.low < 0 < found.high


def test_the_interval_holds_the_true_difference_nineteen_times_in_twenty():
    """Two tasks of different sizes; the first candidate is right 10 points more often in one and 20 in the other."""
    generator = np.random.default_rng(0)

    def task(number: int, more: float) -> tuple[dict[int, bool], dict[int, bool]]:
        luck = generator.random(number)
        noise = generator.random(number) < 0.15
        return answers((luck < 0.4 + more) ^ noise), answers((luck < 0.4) ^ noise)

    expected = 0.7 * (0.1 + 0.2) / 2
    found = [paired_difference([task(150, 0.1), task(80, 0.2)], seed) for seed in range(200)]
    assert np.mean([difference.low <= expected <= difference.high for difference in found]) == pytest.approx(
        0.95, abs=0.04
    )
    assert np.mean([difference.mean for difference in found]) == pytest.approx(expected, abs=0.01)
