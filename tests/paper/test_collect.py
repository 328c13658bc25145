"""What becomes of results that are broken, doubled or undefined when the tables are made: every one is told, and takes
nothing from another."""

import json
import math
import shutil
from pathlib import Path

import pytest

from inference_llms.evaluators.human_eval import results_file
from scripts.make_tables import main as make_tables
from scripts.paper_tables.commands import Setting
from scripts.paper_tables.evaluate import evaluate, files_to_evaluate
from tests.inference_llms.support import read_json_lines, write_rows
from tests.paper.results_by_hand import ANSWERS, ATTACK, GSM8K, MBPP, PROGRAMS, SCORES, change_record, judge, tables_of
from tests.paper.support import read_scores


def break_a_line(path: Path) -> None:
    lines = path.read_text().splitlines()
    lines[3] = lines[3][:20]
    path.write_text("\n".join(lines) + "\n")


def cut_an_all_wrong_cell(results: Path) -> None:
    rows = [{**row, "completion": "The answer is: -12345"} for row in read_json_lines(results / GSM8K)]
    write_rows(results / GSM8K, rows[:3])
    change_record(results, "gsm8k", accuracy=0.0)


def one_more_completion(path: Path) -> None:
    rows = read_json_lines(path)
    write_rows(path, [*rows, {**rows[0], "id": 10_000}])


def leave_out_passed(results: Path) -> None:
    path = results_file([results / PROGRAMS])
    write_rows(path, [{**row, "passed": None} if row["task_id"] else {} for row in read_json_lines(path)])


@pytest.mark.parametrize(
    ("dataset", "spoil", "told"),
    [
        ("GSM8K", lambda results: (results / GSM8K).write_text(""), "gsm8k.jsonl holds 0 completions"),
        ("GSM8K", cut_an_all_wrong_cell, "holds 3 completions, and the score is of 7"),
        ("GSM8K", lambda results: break_a_line(results / GSM8K), "gsm8k.jsonl line 4 is not JSON"),
        ("GSM8K", lambda results: one_more_completion(results / GSM8K), "holds 8 completions, and the score is of 7"),
        ("GSM8K", lambda results: change_record(results, "gsm8k", accuracy="high"), "no number from 0 to 1"),
        (
            "GSM8K",
            lambda results: change_record(results, "gsm8k", raw_generations=None),
            "gsm8k: raw_generations: input",
        ),
        ("GSM8K", lambda results: change_record(results, "gsm8k", examples=0), "gsm8k: examples: fewer than one"),
        ("GSM8K", lambda results: change_record(results, "gsm8k", identity="?"), "gsm8k: identity: input"),
        ("GSM8K", lambda results: change_record(results, "gsm8k", command="\0"), "holds the character NUL"),
        ("GSM8K", lambda results: change_record(results, "gsm8k", accuracy=math.nan), "no number from 0 to 1"),
        ("GSM8K", lambda results: change_record(results, "gsm8k", health={"empty": 9}), "its health does not hold"),
        ("MBPP", lambda results: break_a_line(results / MBPP), "mbpp.jsonl line 4 is not JSON"),
        ("MBPP", lambda results: one_more_completion(results / MBPP), "holds 8 completions, and the score is of 7"),
        ("MBPP", leave_out_passed, "or what its evaluator left beside it, is damaged: 'completion' is not found"),
        ("MBPP", lambda results: change_record(results, "mbpp", files=[]), "names no file for its evaluator"),
        ("MBPP", lambda results: change_record(results, "mbpp", files=[1]), "mbpp: files.0: input"),
        ("MBPP", lambda results: change_record(results, "mbpp", files=["/etc/hostname"]), "which is outside"),
        ("AlpacaEval", lambda results: (results / ANSWERS).unlink(), "alpaca_eval/average_merging.json"),
    ],
)
def test_a_broken_result_is_named_and_takes_no_other_with_it(results, typed_by_hand, capsys, dataset, spoil, told):
    spoil(results)
    said, scores = tables_of(results, capsys)
    row = scores[dataset]
    assert (row["status"], row["value"], row["attack"]) == ("unreadable", "", "")
    assert told in row["note"] and row["note"] in said
    sound = {row["dataset"]: row["value"] for row in read_scores(typed_by_hand)}
    assert {name: row["value"] for name, row in scores.items()} == {**sound, dataset: ""}
    # Whoever picks files for the evaluators meets the same result.
    for files in files_to_evaluate(results):
        assert isinstance(files.task.evaluator.has_scored(files.files), bool)


def test_files_that_no_evaluator_can_read_are_named_by_the_evaluators_call(results, capsys):
    answers = json.loads((results / ANSWERS).read_text())
    (results / ANSWERS).write_text(json.dumps([{**answers[0], "instruction": "not in the set"}, *answers[1:]]))
    (results / PROGRAMS).write_text("[1, 2]")
    results_file([results / PROGRAMS]).unlink()
    change_record(results, "svamp", evaluator_command="svamp_judge", files=[str(results / ANSWERS)])
    evaluate(Setting(results, "tiny", None, "transformers", None), allow_code_execution=True)
    said, scores = tables_of(results, capsys)
    assert "lacks 1 of the instructions answered" in scores["AlpacaEval"]["note"]
    assert str(results / PROGRAMS) in scores["MBPP"]["note"]
    for dataset in ("AlpacaEval", "MBPP"):
        assert (scores[dataset]["status"], scores[dataset]["value"]) == ("missing", "")
        assert scores[dataset]["note"] in said


def test_programs_that_were_judged_in_part_are_those_of_their_set_not_of_an_attack(results, capsys):
    (results / PROGRAMS).write_text(json.dumps([*json.loads((results / PROGRAMS).read_text())[:6], []]))
    judge(results / PROGRAMS)
    said, scores = tables_of(results, capsys)
    assert "(LM & Code average MBPP): 6 of 7 answers were judged" in said
    assert (scores["MBPP"]["attack"], scores["MBPP"]["metric"]) == ("", "pass@1")


def test_a_drop_from_nothing_is_told_as_undefined(results, capsys):
    report = json.loads((results / ATTACK).read_text())
    report |= {"clean_accuracy": 0.0, "clean_right": [False] * 10, "performance_drop_rate": None}
    (results / ATTACK).write_text(json.dumps(report))
    said, scores = tables_of(results, capsys)
    row = scores["SST-2"]
    assert (row["status"], row["value"]) == ("missing", "")
    assert row["note"].startswith("undefined, for the clean accuracy is 0; accuracy 0.0 clean, ")
    assert f"missing, 1 (LM & Code average SST-2 stresstest): {row['note']}" in said


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"clean_right": [True] * 3}, "its clean accuracy is not that of its 10 samples"),
        ({"performance_drop_rate": 0.9}, "its drop rate is not that of its accuracies"),
        ({"performance_drop_rate": math.nan}, "its drop rate is not that of its accuracies"),
        ({"attacked_right": None}, "attacked_right: input should be"),
        ({"settings": {}}, "settings.backend: field required"),
    ],
)
def test_a_broken_result_of_an_attack_is_named(results, capsys, changes, told):
    (results / ATTACK).write_text(json.dumps({**json.loads((results / ATTACK).read_text()), **changes}))
    said, scores = tables_of(results, capsys)
    assert (scores["SST-2"]["status"], scores["SST-2"]["value"]) == ("unreadable", "")
    assert f"{results / ATTACK}" in scores["SST-2"]["note"] and told in said
    assert scores["GSM8K"]["status"] == "ok"


def test_a_broken_rival_of_a_good_score_is_named_beside_it(results, capsys):
    for folder in ("save_scores", "save_merge_models", "save_gen_codes_results", "save_raw_generations"):
        shutil.copytree(results / folder, results / "again" / folder)
    records = json.loads((results / SCORES).read_text())
    (results / "again" / SCORES).write_text(json.dumps({"mbpp": records["mbpp"]}))
    (results / "again" / PROGRAMS).write_text(json.dumps([["def another(): pass"]] * 7))
    capsys.readouterr()
    make_tables([str(results)])
    said = capsys.readouterr().out
    good, broken = sorted((row for row in read_scores(results) if row["dataset"] == "MBPP"), key=lambda r: r["status"])
    assert good["status"] == "ok" and good["value"] != ""
    assert (broken["status"], broken["result_file"]) == ("unreadable", str(results / "again" / SCORES))
    assert "of other programs than" in broken["note"] and broken["note"] in said
    (line,) = [line for line in (results / "tables" / "tables.md").read_text().splitlines() if "| no |" in line]
    assert "draws" not in line and f"{float(good['value']):.1f} [" in line


def test_two_results_are_told_once(results, capsys):
    shutil.copytree(results / "save_merge_models", results / "again" / "save_merge_models")
    shutil.copytree(results / "save_gen_codes_results", results / "again" / "save_gen_codes_results")
    records = json.loads((results / SCORES).read_text())
    (results / "again" / SCORES).parent.mkdir(parents=True)
    (results / "again" / SCORES).write_text(json.dumps({"mbpp": records["mbpp"]}))
    verdicts = results_file([results / "again" / PROGRAMS])
    write_rows(verdicts, [{**row, "passed": True} for row in read_json_lines(verdicts)])
    capsys.readouterr()
    make_tables([str(results)])
    told = f"100.0 in {results / 'again' / SCORES}; 42.9 in {results / SCORES}"
    assert f"two results, 2 (LM & Code average MBPP, ...): {told}" in capsys.readouterr().out
    notes = (results / "tables" / "tables.md").read_text()
    assert f"two results: {told}" in notes and "two results: two results" not in notes


def test_a_broken_record_of_a_merge_is_named(results, capsys):
    for record in (results / "save_merge_models").rglob("merge_record.json"):
        record.write_text(record.read_text()[:300])
    said, scores = tables_of(results, capsys)
    assert "merge_record.json is not the whole record of a merge" in said
    assert scores["GSM8K"]["status"] == "unreadable" and scores["SST-2"]["status"] == "ok"
