"""Scores, and the summary of several draws: mean, spread, best, and the gain by M3."""

import csv
import io
import re
from dataclasses import replace

import pytest

from inference_llms.answer_health import Health
from scripts.paper_tables.scores import Score, gain, percent_interval, scores_csv, summarise
from scripts.paper_tables.tables import paper_tables
from utils.intervals import drop_rate_interval

PLAIN = Score(models="LM & Math", inputs="instruct + math", method="TIES", dataset="GSM8K", metric="accuracy")


def answered(score: Score, *right: bool) -> Score:
    low, high = percent_interval(right)
    value = 100 * sum(right) / len(right)
    return replace(
        score, value=value, low=low, high=high, examples=len(right), values=tuple(enumerate(map(float, right)))
    )


def draw(seed: int, *right: bool) -> Score:
    return answered(replace(PLAIN, mixup=True, alpha=0.5, seed=seed, ratios=f"0.{seed} 0.{10 - seed}"), *right)


def cells(*scores: Score) -> dict[str, tuple[str, ...]]:
    """The cells of GSM8K in the table of performance, by the column M3."""
    (table,) = [table for table in paper_tables(scores) if table.name == "performance"]
    return {row[2][0]: row[table.head.index("GSM8K")] for row in table.rows}


def test_draws_are_summarised_by_mean_spread_and_best():
    summary = summarise([draw(1, True, True, True, True), draw(2, True, False, False, False)])
    assert summary.value == pytest.approx(62.5)
    assert summary.spread == pytest.approx(53.03, abs=0.01)
    assert summary.best == 100
    assert summary.low < 62.5 < summary.high
    (m3,) = [lines for name, lines in cells(*summary.scores).items() if name.startswith("yes")]
    assert m3[0].startswith("62.5 [") and m3[1] == "sd 53.0, best 100.0"


def attacked(seed: int | None, before: list[bool], after: list[bool]) -> Score:
    """A drop rate on CoLA; `seed` of M3, None without."""
    low, high = drop_rate_interval([before], [after])
    what = {"dataset": "CoLA", "attack": "stresstest", "metric": "PDR", "examples": len(before)}
    drawn = {"mixup": True, "alpha": 0.5, "seed": seed} if seed is not None else {}
    value = 100 * (1 - sum(after) / sum(before))
    return replace(PLAIN, **what, **drawn, value=value, low=100 * low, high=100 * high, right=(before, after))


def test_the_best_drop_rate_is_the_lowest():
    scores = [attacked(1, [True] * 10, [True] * 9 + [False]), attacked(2, [True] * 10, [False] * 10)]
    assert summarise(scores).best == pytest.approx(10)


def test_the_drop_rate_of_several_draws_has_an_interval_over_draws_and_examples():
    draws = [
        attacked(1, [True] * 10, [True, False] * 5),
        attacked(2, [True] * 9 + [False], [True] * 3 + [False] * 7),
        attacked(3, [False, True] * 5, [False] * 10),
    ]
    summary = summarise(draws)
    assert summary.value == pytest.approx((50 + 200 / 3 + 100) / 3)
    assert 0 < summary.low < min(60, summary.value) and 85 < summary.high <= 100
    (table,) = paper_tables([attacked(None, [True] * 10, [True, False] * 5), *draws])
    with_mixup = table.rows[0][table.head.index("PDR with M3")]
    assert re.match(r"72\.2 \[\d+\.\d, \d+\.\d\]$", with_mixup[0])


def with_health(score: Score, **faults: int | None) -> Score:
    sound = {"empty": 0, "cut_off": 0, "repeating": 0, "unreadable": 0, "same": 1}
    return replace(score, health=Health(answers=score.examples, **{**sound, **faults}))


def test_a_note_shows_faults_of_more_than_a_tenth_of_answers():
    plain = answered(PLAIN, *[True] * 5, *[False] * 15)
    (table,) = paper_tables([with_health(plain, empty=2, cut_off=2)])
    assert table.notes == []
    (table,) = paper_tables([with_health(plain, empty=3, cut_off=2)])
    assert table.notes == ["of 20 answers: 3 empty"] and "[1]" in table.rows[0][table.head.index("GSM8K")]
    draws = [with_health(draw(seed, *[True] * 10), repeating=2 * seed) for seed in (0, 1)]
    assert paper_tables(draws)[0].notes == []
    draws = [with_health(draw(seed, *[True] * 10), repeating=2) for seed in (0, 1)]
    assert paper_tables(draws)[0].notes == ["of 20 answers: 4 repeating the same text to the end"]


def test_the_csv_has_the_health_of_answers():
    known = with_health(answered(PLAIN, True, False), unreadable=1)
    replayed, before = with_health(known, unreadable=1, cut_off=None), answered(PLAIN, True)
    rows = list(csv.DictReader(io.StringIO(scores_csv([known, replayed, before]))))
    shown = [[row[name] for name in ("empty", "cut_off", "repeating", "unreadable", "same")] for row in rows]
    assert shown == [["0", "0", "0", "1", "1"], ["0", "", "0", "1", "1"], [""] * 5]


def test_draws_over_different_numbers_of_examples_have_no_interval():
    summary = summarise([attacked(1, [True] * 4, [False] * 4), attacked(2, [True] * 5, [True] * 5)])
    assert (summary.value, summary.low, summary.high) == (50, None, None)


def test_draws_of_a_perplexity_have_a_mean_and_no_interval():
    draws = [replace(draw(seed, True), value=value, is_share=False) for seed, value in ((1, 150.0), (2, 250.0))]
    summary = summarise(draws)
    assert (summary.value, summary.low, summary.high, summary.best) == (200, None, None, None)


def test_a_draw_without_a_value_is_counted_and_noted():
    broken = replace(draw(2, True, True), value=None, low=None, high=None, values=None, status="unreadable", note="why")
    (m3,) = [lines for name, lines in cells(draw(1, True, False), broken).items() if name.startswith("yes")]
    assert m3[0].startswith("50.0 [") and "1 of 2 draws [1]" in m3
    (table,) = paper_tables([draw(1, True, False), broken])
    assert table.notes == ["unreadable: why"]


@pytest.mark.parametrize(
    ("plain", "draws", "value", "low", "high"),
    [
        ([True] + [False] * 3, [[True] * 2 + [False] * 2, [True] * 4], 50, (0, 50), (50, 100)),
        ([True] * 30, [[True] * 30, [True] * 30, [False] * 30], -100 / 3, (-100, -100), (0, 0)),  # draws far apart
        ([True] * 20 + [False] * 20, [[True] * 30 + [False] * 10], 25, (10, 25), (25, 40)),  # over the examples alone
    ],
)
def test_the_gain_is_the_mean_over_draws_on_the_same_examples(plain, draws, value, low, high):
    scores = [answered(PLAIN, *plain), *(draw(seed, *right) for seed, right in enumerate(draws, 1))]
    found = gain(summarise(scores[:1]), summarise(scores[1:]))
    assert found[0] == pytest.approx(value)
    assert low[0] <= found[1] <= low[1] and high[0] <= found[2] <= high[1]
    sign = "−" if value < 0 else "+"
    assert cells(*scores)["M3 − without"][0].startswith(f"{sign}{abs(value):.1f} [")


def test_draws_of_dare_widen_the_interval_of_the_gain():
    """DARE and M3 against DARE, drawn thrice each."""
    steady = [replace(draw(seed, *[True, False] * 10), dare=True) for seed in (1, 2, 3)]
    apart = [replace(answered(PLAIN, *[seed > 0] * 20), dare=True, seed=seed, ratios="") for seed in (0, 1, 2)]
    value, low, high = gain(summarise(apart), summarise(steady))
    assert (value, low) == (pytest.approx(50 - 200 / 3), pytest.approx(-50, abs=20))
    assert high >= 25


def test_different_examples_have_no_gain():
    plain = summarise([answered(PLAIN, True, False, False)])
    assert gain(plain, summarise([draw(1, True, True)])) is None


def test_a_difference_from_a_published_value_needs_its_metric_prompts_and_the_whole_set():
    part = answered(PLAIN, True, False)
    assert cells(part)["no"][-1] == "published 14.6"
    whole = answered(PLAIN, *[True] * 330, *[False] * 989)
    assert cells(whole)["no"][-1] == "published 14.6 (+10.4)"
    assert cells(replace(whole, prompts="chat"))["no"][-1] == "published 14.6"
    assert len(cells(replace(part, metric="lenient_accuracy"))["no"]) == 1
