"""The overview of merges: their share of the fine-tunes' scores."""

import json
from dataclasses import asdict, replace

from scripts.paper_tables.cells import Cell, finetune_cells
from scripts.paper_tables.overview import overview_table
from scripts.paper_tables.scores import Score, summaries
from tests.scripts.paper_tables.support import MERGE, read_scores, run_script

MERGED = Score(models="LM & Math", inputs="org/wizard + org/math", method="average", dataset="GSM8K", examples=4)
ALONE = Score(models="math", dataset="GSM8K", examples=4)


def with_value(score: Score, *right: int) -> Score:
    return replace(score, value=100 * sum(right) / len(right), values=tuple(enumerate(map(float, right))))


def share(*scores: Score) -> list[str]:
    table = overview_table(summaries(scores))
    return [row[table.head.index("of the fine-tunes")][0].split(" [")[0] for row in table.rows]


def test_a_merge_of_hub_models_is_compared_with_its_finetunes():
    assert share(with_value(MERGED, 1, 0, 0, 0), with_value(ALONE, 1, 1, 0, 0)) == ["50.0"]


def test_a_finetune_is_compared_by_the_same_prompts():
    merged = [with_value(replace(MERGED, prompts=prompts), 1, 0, 0, 0) for prompts in ("paper", "chat")]
    chat = with_value(replace(ALONE, prompts="chat"), 1, 1, 1, 1)
    assert share(*merged, chat, with_value(ALONE, 1, 1, 0, 0)) == ["50.0", "25.0"]


def test_m3_at_a_given_ratio_is_compared_with_the_same_merge_without_m3():
    plain = replace(MERGED, variant="s = 0.7")
    at_ratio = replace(plain, variant="s = 0.7, λ given", mixup=True, ratios="0.25 0.75")
    scores = [with_value(MERGED, 1, 1, 1, 1), with_value(plain, 1, 0, 0, 0), with_value(at_ratio, 1, 1, 0, 0)]
    table = overview_table(summaries(scores))
    changes = [row[table.head.index("M3 − without")][0].split(" [")[0] for row in table.rows]
    assert changes == ["–", "–", "+25.0"]


def test_the_interval_of_a_mean_is_within_0_and_100():
    for right, interval in (((0, 0, 0, 0), "0.0 [0.0, 32.4]"), ((1, 1, 1, 1), "100.0 [67.6, 100.0]")):
        merges = [with_value(replace(MERGED, dataset=name), *right) for name in ("GSM8K", "MATH")]
        table = overview_table(summaries(merges))
        assert [row[table.head.index("mean")] for row in table.rows] == [(interval,)]


def test_tables_run_the_finetunes_that_the_overview_needs(tmp_path):
    options = {"end_index": 4}
    cells = [Cell(("dare",), MERGE, options={**options, "tasks": ["alpaca_eval"]})]
    cells += [replace(cell, options={**cell.options, **options}) for cell in finetune_cells("dare", ["instruct"])]
    (tmp_path / "cells.json").write_text(json.dumps({"cells": list(map(asdict, cells))}))
    results = tmp_path / "results"
    for number in ("2 done now, 0 before", "0 done now, 2 before"):
        done = run_script("run", "--cells", tmp_path / "cells.json", "--models", "tiny", "--results_dir", results)
        assert number in done.stdout, done.stdout + done.stderr
    (alone,) = read_scores(results, models="instruct")
    assert alone["command"].startswith("python -m inference_llms --load_model_path scripts/tiny_zoo/instruct")
    assert (alone["method"], alone["merge_command"], alone["examples"]) == ("", "", "4")
    row = next(line for line in (results / "tables" / "tables.md").read_text().splitlines() if "LM & Code" in line)
    assert row.split("|")[7].strip().startswith("100.0 [")
