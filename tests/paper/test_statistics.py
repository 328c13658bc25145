"""Several draws in one figure, and what M3 adds to it."""

from dataclasses import replace

import pytest

from scripts.paper_tables.score import OK, Score, percent_interval
from scripts.paper_tables.summary import gain, summarise
from scripts.paper_tables.tables import paper_tables

PLAIN = Score(
    models="LM & Math",
    inputs="instruct + math",
    method="TIES",
    variant="",
    mixup=False,
    dare=False,
    alpha=None,
    seed=None,
    ratios="",
    dataset="GSM8K",
    attack="",
    metric="accuracy",
    value=None,
    low=None,
    high=None,
    examples=None,
    status=OK,
    note="",
    backend="transformers",
    command="",
    evaluator_command="",
    merge_command="",
    merge_record="",
    fingerprint="",
    result_file="",
)


def answered(score: Score, *right: bool) -> Score:
    low, high = percent_interval(right)
    value = 100 * sum(right) / len(right)
    return replace(
        score, value=value, low=low, high=high, examples=len(right), values=tuple(enumerate(map(float, right)))
    )


def draw(seed: int, *right: bool) -> Score:
    return answered(replace(PLAIN, mixup=True, alpha=0.5, seed=seed, ratios=f"0.{seed} 0.{10 - seed}"), *right)


def cells(*scores: Score) -> dict[str, tuple[str, ...]]:
    """The cells of GSM8K in the table of performance, by what stands in the column M3."""
    (table,) = [table for table in paper_tables(scores) if table.name == "performance"]
    return {row[2][0]: row[table.head.index("GSM8K")] for row in table.rows}


def test_draws_give_mean_spread_and_best_never_the_best_alone():
    summary = summarise([draw(1, True, True, True, True), draw(2, True, False, False, False)])
    assert summary.value == pytest.approx(62.5)
    assert summary.spread == pytest.approx(53.03, abs=0.01)
    assert summary.best == 100
    assert summary.low < 62.5 < summary.high
    (m3,) = [lines for name, lines in cells(*summary.scores).items() if name.startswith("yes")]
    assert m3[0].startswith("62.5 [") and m3[1] == "sd 53.0, best 100.0"


def test_the_best_drop_rate_is_the_lowest():
    scores = [replace(draw(seed, True, False), metric="PDR", value=10.0 * seed) for seed in (1, 2)]
    assert summarise(scores).best == 10


def test_a_draw_without_a_value_is_counted_and_told_not_guessed():
    broken = replace(draw(2, True, True), value=None, low=None, high=None, values=None, status="unreadable", note="why")
    (m3,) = [lines for name, lines in cells(draw(1, True, False), broken).items() if name.startswith("yes")]
    assert m3[0].startswith("50.0 [") and "1 of 2 draws [1]" in m3
    (table,) = paper_tables([draw(1, True, False), broken])
    assert table.notes == ["unreadable: why"]


def test_the_gain_is_that_of_the_mean_draw_on_the_same_examples():
    plain = summarise([answered(PLAIN, True, False, False, False)])
    drawn = summarise([draw(1, True, True, False, False), draw(2, True, True, True, True)])
    found = gain(plain, drawn)
    assert found.value == pytest.approx(50)
    assert found.low <= 50 <= found.high


def test_there_is_no_gain_over_other_examples():
    plain = summarise([answered(PLAIN, True, False, False)])
    assert gain(plain, summarise([draw(1, True, True)])) is None


def test_a_published_value_stands_beside_ours_with_a_difference_only_over_the_whole_set():
    part = cells(answered(PLAIN, True, False))
    assert part["no"][-1] == "published 14.6"
    whole = cells(answered(PLAIN, *[True] * 330, *[False] * 989))
    assert whole["no"][-1] == "published 14.6 (+10.4)"


def test_no_published_value_stands_beside_another_metric():
    assert len(cells(replace(answered(PLAIN, True, False), metric="lenient_accuracy"))["no"]) == 1
