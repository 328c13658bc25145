"""The hours that a search reports: used from its stored times, left by its plan."""

import re

import pytest

from model_merging_methods.merge_parameters import parameters_of
from scripts.mixup_search.hours import hours_lines
from scripts.mixup_search.search_space import Values
from tests.scripts.mixup_search.small_search import SmallSearch


def test_hours_used_and_left_follow_from_the_stored_times(tmp_path):
    search = SmallSearch(tmp_path / "a.sqlite", parameters_of("average_merging"))
    assert hours_lines(search.store) == []
    search.validate()  # on two rungs; each score took a second
    compared, draws = len(search.references), len(search.draws)
    scores = 2 * ((compared + draws) + (compared + draws // 2))  # on two tasks
    answered = 2 * (10 * (compared + draws) + 30 * (compared + draws // 2))
    used, left = hours_lines(search.store)
    assert used == f"used: {scores / 3600:.2g} engine hours for {answered:,} answers"
    assert left.startswith("left: about ") and left.endswith("for 240 answers"), "the test of two merges on 60 examples"
    (used, *_) = hours_lines(search.store, devices=4)
    assert used == f"used: {4 * scores / 3600:.2g} GPU hours for {answered:,} answers"


def test_hours_have_each_start_of_an_engine_once(tmp_path):
    search = SmallSearch(tmp_path / "a.sqlite", parameters_of("average_merging")).validate()
    hours = re.compile(r"[\d.]+ (?=engine hours)")
    before = [float(hours.search(line)[0]) for line in hours_lines(search.store)]
    for seconds in (3 * 3600, 5 * 3600):
        search.store.add_start(seconds)
    used, left = hours_lines(search.store, engines=3)
    assert float(hours.search(used)[0]) == pytest.approx(before[0] + 8, rel=0.05) and "2 starts of an engine" in used
    assert float(hours.search(left)[0]) == pytest.approx(before[1] + 3 * 4, rel=0.05) and left.endswith(
        "for 240 answers and 3 starts of an engine"
    )


GRID = {"draw_by": "grid", "roles": ("instruct", "math", "code")}


@pytest.mark.parametrize(
    ("options", "draws"),
    [
        ({}, 10),
        ({**GRID, "num_draws": 11}, 10),  # of three models, no even grid has 11 points
        ({**GRID, "num_draws": 3, "scaling_coefficient": Values((0.7, 1.0))}, 6),
    ],
)
def test_nothing_is_left_of_a_whole_search(options, draws, tmp_path):
    search = SmallSearch(tmp_path / "a.sqlite", parameters_of("task_arithmetic"), **options)
    assert len(search.draws) == draws
    search.validate()
    search.test(search.draws[0], search.references[0])
    assert len(hours_lines(search.store)) == 1
