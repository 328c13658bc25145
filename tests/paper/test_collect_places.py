"""Which command, merge and cell stand beside a score; and a results' folder gives the same tables wherever it lies."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from inference_llms.evaluators.human_eval import results_file
from inference_llms.evaluators.results import command_file
from merge_llms_instruct_math_code import main as main_job
from scripts.make_tables import main as make_tables
from scripts.paper_tables.cell import MAIN_JOB, STATES, Cell, write_state
from scripts.paper_tables.commands import CLASSIFIER_RESULTS
from tests.inference_llms.support import read_json_lines, write_rows
from tests.paper.results_by_hand import (
    ANSWERS,
    ATTACK,
    GSM8K,
    MERGE,
    PROGRAMS,
    SCORES,
    ZOO,
    change_record,
    judge,
    tables_of,
)
from tests.paper.support import read_scores


def keep_cell(results: Path, options: str, status: str, started: float = 0) -> None:
    """Put a cell of the merge on record, as it was where the results lay before."""
    words = (*MERGE, *options.split())
    about = {"root": "where/it/was", "tasks_name": "instruct_code", "name": "average_merging", "started": started}
    command = shlex.join(["python", MAIN_JOB, *words])
    write_state(results, Cell(("performance",), words, (MAIN_JOB,)), [command], status=status, **about)


def test_a_task_of_ones_own_has_its_accuracy_or_is_told_to_wait_for_its_evaluator(results, capsys):
    own = {task: str(results / GSM8K.replace("gsm8k", task)) for task in ("svamp", "essays")}
    for path in own.values():
        shutil.copy(results / GSM8K, path)
    judged = {"files": [str(results / ANSWERS)], "evaluator_command": "grade essays.json"}
    change_record(results, "svamp", raw_generations=own["svamp"])
    change_record(results, "essays", raw_generations=own["essays"], **judged)
    records = json.loads((results / SCORES).read_text())
    del records["essays"]["accuracy"]
    (results / SCORES).write_text(json.dumps(records))
    _, scores = tables_of(results, capsys)
    assert (scores["svamp"]["status"], scores["svamp"]["value"]) == ("ok", scores["GSM8K"]["value"])
    assert "the task has no `is_right`" in scores["svamp"]["note"]
    essays = scores["essays"]
    assert (essays["status"], essays["value"], essays["evaluator_command"]) == ("missing", "", "grade essays.json")


def test_a_replay_of_some_of_the_completions_is_scored_on_those(results, tmp_path, capsys):
    again = tmp_path / "again"
    replay = ["--backend", "replay", "--replay_from", str((results / GSM8K).parent), "--data_dir", str(ZOO / "data")]
    asked = ["--tasks", "gsm8k", "mbpp", "--start_index", "1", "--end_index", "5"]
    main_job([*MERGE, *replay, *asked, "--output_dir", str(again)])
    judge(again / PROGRAMS)
    _, scores = tables_of(again, capsys)
    for dataset in ("GSM8K", "MBPP"):
        assert (scores[dataset]["status"], scores[dataset]["examples"], scores[dataset]["note"]) == ("ok", "4", "")
    (results / GSM8K).write_text("".join((results / GSM8K).read_text().splitlines(keepends=True)[:3]))
    _, scores = tables_of(again, capsys)
    assert scores["GSM8K"]["status"] == "unreadable"


def test_a_replay_of_completions_without_prompts_is_scored(results, tmp_path, capsys):
    given = tmp_path / "given"
    rows = [{name: row[name] for name in ("id", "completion")} for row in read_json_lines(results / GSM8K)]
    write_rows(given / "gsm8k.jsonl", rows)
    replay = ["--backend", "replay", "--replay_from", str(given), "--data_dir", str(ZOO / "data"), "--end_index", "7"]
    main_job([*MERGE, *replay, "--tasks", "gsm8k", "--output_dir", str(tmp_path / "again")])
    _, scores = tables_of(tmp_path / "again", capsys)
    assert (scores["GSM8K"]["status"], scores["GSM8K"]["note"]) == ("ok", "")


def test_a_command_that_was_typed_in_another_folder_is_compared_on_its_own_set(results, capsys):
    command = json.loads((results / SCORES).read_text())["gsm8k"]["command"]
    change_record(results, "gsm8k", command=command.replace(str(ZOO / "data"), "some/where"))
    _, scores = tables_of(results, capsys)
    assert (scores["GSM8K"]["status"], scores["GSM8K"]["note"]) == ("ok", "")


def test_each_result_has_the_command_that_asked_for_it(results, capsys):
    def asked_by_hand(scores: dict, dataset: str) -> str:
        assert scores[dataset]["merge_command"].startswith(f"python {MAIN_JOB} --merge_instruct --merge_code")
        return scores[dataset]["command"].partition("--tasks ")[2]

    _, scores = tables_of(results, capsys)
    assert asked_by_hand(scores, "AlpacaEval") == "alpaca_eval --end_index 5"
    assert asked_by_hand(scores, "GSM8K") == asked_by_hand(scores, "MBPP") == "gsm8k mbpp --end_index 7"

    data = f"--data_dir {ZOO / 'data'}"
    for number, (asked, status) in enumerate(
        [
            ("alpaca_eval --end_index 5", "done"),
            ("gsm8k --end_index 3", "failed"),
            ("gsm8k mbpp --end_index 6", "done"),
            ("gsm8k --end_index 9", "planned"),
        ]
    ):
        keep_cell(results, f"{data} --tasks {asked}", status, number)
    _, scores = tables_of(results, capsys)
    # What was typed stands in the result; how the merge was made, in the cell that is done.
    assert asked_by_hand(scores, "AlpacaEval") == "alpaca_eval --end_index 5"
    assert asked_by_hand(scores, "GSM8K") == asked_by_hand(scores, "MBPP") == "gsm8k mbpp --end_index 7"
    made = {name: scores[name]["merge_command"].partition(data)[2] for name in ("AlpacaEval", "GSM8K", "MBPP")}
    assert made == {
        "AlpacaEval": " --tasks alpaca_eval --end_index 5",
        "GSM8K": " --tasks gsm8k mbpp --end_index 6",
        "MBPP": " --tasks gsm8k mbpp --end_index 6",
    }


def test_an_attack_on_a_merge_that_was_typed_by_hand_stands_in_the_tables(results, capsys):
    _, scores = tables_of(results, capsys)
    row, report = scores["SST-2"], json.loads((results / ATTACK).read_text())
    assert (row["models"], row["method"], row["attack"], row["metric"]) == ("LM & Code", "average", "stresstest", "PDR")
    assert float(row["value"]) == pytest.approx(100 * report["performance_drop_rate"])
    assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
    assert row["inputs"] == "classify + code" and row["fingerprint"] == report["settings"]["weights_fingerprint"]
    assert "| SST-2 | stresstest | " in (results / "tables" / "tables.md").read_text()


def test_a_moved_folder_gives_the_same_tables_from_its_own_files(results, tmp_path, capsys):
    _, before = tables_of(results, capsys)
    moved = tmp_path / "moved to" / "results"
    moved.parent.mkdir()
    results.rename(moved)
    _, after = tables_of(moved, capsys)
    for dataset, row in after.items():
        left = {name: text.replace(str(results), str(moved)) for name, text in before[dataset].items()}
        assert {**row, "evaluator_command": ""} == {**left, "evaluator_command": ""}
        assert str(results) not in row["evaluator_command"]
    judge = shlex.split(after["MBPP"]["evaluator_command"])
    assert judge == ["evaluate_functional_correctness", f"{moved / PROGRAMS}_samples.jsonl"]
    command_file(results_file([moved / PROGRAMS])).unlink()
    words = shlex.split(tables_of(moved, capsys)[1]["MBPP"]["evaluator_command"])
    assert words[words.index("--load_generations_path") + 1] == str(moved / PROGRAMS)


def test_a_copy_is_not_read_from_the_original(results, tmp_path, capsys):
    copy = tmp_path / "second copy"
    shutil.copytree(results, copy)
    (copy / GSM8K).write_text("")
    (copy / PROGRAMS).write_text("[]")
    _, scores = tables_of(copy, capsys)
    assert [scores[name]["status"] for name in ("GSM8K", "MBPP")] == ["unreadable", "unreadable"]
    assert str(copy) in scores["GSM8K"]["note"]


def test_paths_in_the_table_begin_as_the_folder_was_given(results, monkeypatch):
    monkeypatch.chdir(results.parent)
    keep_cell(results, "--tasks MATH", "done")
    make_tables([results.name])
    rows = read_scores(results)
    assert {row["dataset"] for row in rows if row["status"] == "missing"} == {"AlpacaEval", "MATH"}
    for row in rows:
        assert row["merge_record"].startswith(f"{results.name}/") and Path(row["merge_record"]).is_file()
        assert not row["result_file"] or row["result_file"].startswith(f"{results.name}/")


def test_a_cell_whose_record_is_broken_is_named(results, capsys):
    (results / STATES).mkdir()
    (results / STATES / "half_written.json").write_text('{"cell": "--merge_ins')
    (results / STATES / "other.json").write_text('{"cell": "--merge_instruct --merge_math"}')
    capsys.readouterr()
    make_tables([str(results)])
    said = capsys.readouterr().out
    for name in ("half_written", "other"):
        assert f"unreadable, 1 ({name}): {results / STATES / name}.json" in said
    told = [row["note"] for row in read_scores(results) if row["status"] == "unreadable"]
    assert len(told) == 2 and all("remove it and run its script again" in note for note in told)
    assert "ok" in {row["status"] for row in read_scores(results)}


def test_a_half_written_scores_file_is_the_reason_told_of_its_cells(results, capsys):
    keep_cell(results, "--tasks gsm8k mbpp", "done")
    (results / SCORES).write_text((results / SCORES).read_text()[:200])
    _, scores = tables_of(results, capsys)
    for dataset in ("GSM8K", "MBPP"):
        assert f"{results / SCORES} is not whole" in scores[dataset]["note"]


def test_no_note_repeats_the_word_before_it(results, capsys):
    keep_cell(results, "--tasks MATH", "done")
    keep_cell(results, "--tasks human_eval", "planned")
    said, scores = tables_of(results, capsys)
    assert "HumanEval): not run yet" in said
    assert scores["MATH"]["note"].startswith("the cell ran, and its result is not there any more")
    assert not any(row["note"].startswith(row["status"]) for row in read_scores(results))


def test_an_attacked_cell_is_found_below_the_folder_of_the_tiny_classifier(results):
    (results / "classifier").rename(results / CLASSIFIER_RESULTS)
    words = ("promptbench/sst2.py", "--model_path", "MERGED", "--attack_method", "stresstest", "deepwordbug")
    about = {"root": f"where/it/was/{CLASSIFIER_RESULTS}", "tasks_name": "instruct_code", "name": "average_merging"}
    write_state(
        results,
        Cell((), MERGE, words),
        ["python merge.py", shlex.join(["python", *words])],
        status="failed",
        reason="no room",
        **about,
    )
    make_tables([str(results)])
    rows = {row["attack"]: row for row in read_scores(results) if row["dataset"] == "SST-2"}
    assert {name: row["status"] for name, row in rows.items()} == {"stresstest": "ok", "deepwordbug": "missing"}
    assert rows["deepwordbug"]["note"] == "failed: no room"
    for row in rows.values():
        assert Path(row["merge_record"]).is_relative_to(results / CLASSIFIER_RESULTS)
        assert (row["merge_command"], row["command"].split()[1]) == ("python merge.py", "promptbench/sst2.py")
