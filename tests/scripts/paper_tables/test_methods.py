"""The table of methods: tests of differences, the rows and the finding, and two methods run from the shell."""

import csv
import json
from dataclasses import asdict
from math import comb
from pathlib import Path

import pytest

from scripts.paper_tables.cells import SEARCH, Cell
from scripts.paper_tables.method_scores import MethodScore, compare_methods, holm, randomisation_p
from scripts.paper_tables.method_table import finding, methods_csv, methods_table
from scripts.paper_tables.tables import html_page, latex, markdown
from tests.scripts.paper_tables.support import run_script

ALL, PAIR = "LM & Math & Code", "LM & Math"
BASELINE = [*[True] * 30, *[False] * 10]


def score(method: str, right: list[bool], models: str = ALL, tasks: tuple[str, ...] = ("gsm8k", "MATH")) -> MethodScore:
    """The same answers to each task."""
    by_task = {task: dict(enumerate(right)) for task in tasks}
    tuned = {"scaling_coefficient": (0.5, (1, 0.5, 2))} if method == "tsv_m" else {}
    return MethodScore(models, method, tuned, by_task, by_task, dict.fromkeys(tasks, 20))


SCORES = [
    score("ties_merging", [False] * 40),
    score("task_arithmetic", BASELINE),
    score("tsv_m", [True] * 40),
    score("karcher", [*[True] * 29, False, True, *[False] * 9]),
    MethodScore(ALL, "wudi", note="failed: out of memory"),
    score("slerp", [*[True] * 20, *[False] * 20], PAIR),
    score("task_arithmetic", [False] * 40, PAIR),
]


def answers(*right: bool) -> dict[int, bool]:
    return dict(enumerate(right))


@pytest.mark.parametrize(("won", "lost"), [(6, 0), (9, 2), (5, 5), (0, 0)])
def test_the_p_value_of_one_task_is_that_of_the_sign_test(won, lost):
    first = answers(*[True] * won, *[False] * lost, *[True] * 8)
    second = answers(*[False] * won, *[True] * lost, *[True] * 8)
    number, most = won + lost, max(won, lost)
    exact = min(1.0, 2 * sum(comb(number, k) for k in range(most, number + 1)) / 2**number)
    assert randomisation_p([(first, second)]) == pytest.approx(exact, abs=0.005)
    assert randomisation_p([(second, first)]) == randomisation_p([(first, second)])


def test_holm_multiplies_the_smallest_p_most_and_keeps_the_order():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06}
    )
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}


def test_each_method_is_compared_with_task_arithmetic_of_its_models():
    found = compare_methods(SCORES)
    assert {key: one.verdict for key, one in found.items()} == {
        (ALL, "ties_merging"): "worse",
        (ALL, "tsv_m"): "better",
        (ALL, "karcher"): "",
        (PAIR, "slerp"): "better",
    }
    assert found[ALL, "tsv_m"].difference.mean == pytest.approx(0.25)
    assert all(one.p <= one.corrected for one in found.values())


def test_methods_on_other_tasks_are_not_compared():
    assert compare_methods([score("tsv_m", BASELINE, tasks=("gsm8k",)), score("task_arithmetic", BASELINE)]) == {}


def test_rows_are_sorted_by_mean_within_the_models():
    table = methods_table(SCORES)
    assert [(row[0][0], row[1][0]) for row in table.rows] == [
        (ALL, "tsv_m"),
        (ALL, "karcher"),
        (ALL, "task_arithmetic"),
        (ALL, "ties_merging"),
        (ALL, "wudi"),
        (PAIR, "slerp"),
        (PAIR, "task_arithmetic"),
    ]
    assert {len(row) for row in table.rows} == {len(table.head)}
    assert table.notes == ["failed: out of memory"] and table.rows[4][3] == ("– [1]",)
    rows = {row[1][0]: dict(zip(table.head, row, strict=True)) for row in table.rows[:5]}
    assert rows["tsv_m"]["minus task arithmetic"][0].startswith("+25.0 [")
    assert rows["tsv_m"]["p, Holm"] == ("< 0.001, better",)
    assert rows["task_arithmetic"]["minus task arithmetic"] == ("baseline",)
    assert rows["tsv_m"]["tuned"] == ("s = 0.5",) and rows["karcher"]["tuned"] == ("–",)
    assert "chose it from 1 0.5 2, by" in table.remarks[0]
    assert any(remark.startswith("1 of the methods chose the smallest or the largest") for remark in table.remarks)
    for text in (markdown([table]), latex(table), html_page("Tables", [table], {})):
        assert "+25.0" in text and "nearswap" in text


def test_the_finding_counts_methods_that_are_better_worse_or_neither():
    assert finding(compare_methods(SCORES)).startswith(
        "Of 4 methods compared with tuned task arithmetic, 2 are significantly better (tsv_m, slerp), 1 is "
        "significantly worse (ties_merging), and 1 cannot be distinguished from it; "
    )
    assert methods_table(SCORES).remarks[-1] == finding(compare_methods(SCORES))
    assert finding({}) == "No method can be compared with tuned task arithmetic yet."


def test_the_csv_has_each_task_and_the_comparison_of_the_mean():
    rows = list(csv.DictReader(methods_csv(SCORES).splitlines()))
    of_tsv = {row["dataset"]: row for row in rows if row["method"] == "tsv_m"}
    assert list(of_tsv) == ["GSM8K", "MATH", "mean"]
    assert of_tsv["GSM8K"]["examples"] == "40" and of_tsv["GSM8K"]["verdict"] == ""
    assert (of_tsv["mean"]["value"], of_tsv["mean"]["difference"], of_tsv["mean"]["verdict"]) == (
        "100.0",
        "25.0",
        "better",
    )
    (failed,) = [row for row in rows if row["method"] == "wudi"]
    assert failed["note"] == "failed: out of memory" and failed["value"] == ""


CELL_OPTIONS = {"without_mixup": True, "num_validation": 3, "num_test": 4}
MODELS = {"merge_instruct": True, "merge_code": True}
CELLS = [
    Cell(
        ("methods",),
        {**MODELS, "merging_method_name": "task_arithmetic"},
        SEARCH,
        {**CELL_OPTIONS, "scaling_coefficient": [1, 0.5]},
    ),
    Cell(("methods",), {**MODELS, "merging_method_name": "karcher"}, SEARCH, CELL_OPTIONS),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of cells.json and results after the two cells have run."""
    folder = tmp_path_factory.mktemp("methods")
    (folder / "cells.json").write_text(json.dumps({"cells": list(map(asdict, CELLS))}))
    done = run_cells(folder, "--allow_code_execution")
    assert done.returncode == 0, done.stderr
    assert "2 cells: 2 done now, 0 before, 0 failed" in done.stdout
    return folder


def run_cells(folder: Path, *options: str):
    places = ("--cells", folder / "cells.json", "--results_dir", folder / "results")
    return run_script("run", *places, "--models", "tiny", *options)


def test_methods_are_tuned_and_compared_from_the_shell(run):
    text = (run / "results" / "tables" / "methods.csv").read_text()
    means = {row["method"]: row for row in csv.DictReader(text.splitlines()) if row["dataset"] == "mean"}
    assert means["task_arithmetic"]["options"] in ("s = 1", "s = 0.5") and means["karcher"]["options"] == ""
    assert float(means["karcher"]["p_holm"]) <= 1 and means["karcher"]["models"] == "LM & Code"
    assert means["karcher"]["value"] == means["karcher"]["default_value"], "it has nothing to tune"
    assert means["karcher"]["save_command"].startswith("python merge_llms_instruct_math_code.py --merge_instruct")
    assert "Of 1 methods compared" in (run / "results" / "tables" / "tables.md").read_text()


def test_methods_that_are_done_are_skipped_also_without_permission_to_run_programs(run):
    for options in ((), ("--allow_code_execution",)):
        assert run_cells(run, "--dry_run", *options).stdout.count("# done: ") == 2
