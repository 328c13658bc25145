"""Scores collected from a results folder: their commands, and broken, conflicting or missing ones."""

import json
import math
import shlex
import shutil
from pathlib import Path

import pytest

from inference_llms.__main__ import main as run_inference
from inference_llms.evaluators.human_eval import results_file
from inference_llms.evaluators.results import command_file
from merge_llms_instruct_math_code import main as main_job
from scripts.make_tables import main as make_tables
from scripts.paper_tables.cells import CLASSIFIER_RESULTS, MAIN_JOB, STATES, Cell, CellState, write_state
from scripts.paper_tables.collect import collect_scores
from scripts.paper_tables.evaluate import files_to_evaluate
from scripts.plot_figures import main as plot_figures
from tests.inference_llms.support import read_json_lines, write_rows
from tests.scripts.paper_tables.conftest import PROGRAMS, WORDS, score_programs
from tests.scripts.paper_tables.support import MERGE, ZOO, read_scores
from utils.errors import UserError

NAME = "instruct_code/average_merging"
SCORES = f"save_scores/{NAME}.json"
GSM8K, MBPP = (f"save_raw_generations/{NAME}/{task}.jsonl" for task in ("gsm8k", "mbpp"))
ANSWERS = "save_gen_instruct_responses_results/instruct_code/alpaca_eval/average_merging.json"
ATTACK = "classifier/save_adversarial_results/sst2/instruct_code_average_merging/stresstest.json"


def change_record(results: Path, task: str, **changes: object) -> None:
    path = results / SCORES
    records = json.loads(path.read_text())
    records[task] = {**records.get(task, records["gsm8k"]), **changes}
    path.write_text(json.dumps({name: value for name, value in records.items() if value}))


def tables_of(results: Path, capsys) -> tuple[str, dict[str, dict[str, str]]]:
    """The messages of make_tables, and the scores by data set."""
    capsys.readouterr()
    make_tables([str(results)])
    rows = read_scores(results)
    assert len({row["dataset"] for row in rows}) == len(rows)
    return capsys.readouterr().out, {row["dataset"]: row for row in rows}


def write_cell(
    results: Path, status: str, script: str = MAIN_JOB, root: str = "old/place", started: float = 0, **options
) -> None:
    """Record a cell of the merge, as it was where the results were before."""
    commands = ["python merge.py", f"python {script} {json.dumps(options)}"]
    cell, reason = Cell(("performance",), MERGE, script, options), "no room" if status == "failed" else None
    places = (root, "instruct_code", "average_merging")
    write_state(results, CellState(cell, commands, status, *places, reason=reason, started=started))


def break_a_line(path: Path) -> None:
    lines = path.read_text().splitlines()
    lines[3] = lines[3][:20]
    path.write_text("\n".join(lines) + "\n")


def cut_completions(results: Path) -> None:
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
    ("dataset", "damage", "message"),
    [
        ("GSM8K", cut_completions, "holds 3 completions, but the score is over 7"),
        ("GSM8K", lambda results: break_a_line(results / GSM8K), "gsm8k.jsonl line 4 is not JSON"),
        ("GSM8K", lambda results: one_more_completion(results / GSM8K), "holds 8 completions, but the score is over 7"),
        ("GSM8K", {"accuracy": math.nan}, "not a number from 0 to 1"),
        ("GSM8K", {"accuracy": 0.123}, "do not give the recorded accuracy"),
        ("GSM8K", {"raw_generations": None}, "gsm8k: raw_generations: input"),
        ("GSM8K", {"examples": 0}, "gsm8k: examples: fewer than one"),
        ("GSM8K", {"command": "\0"}, "holds the character NUL"),
        ("GSM8K", {"health": {"empty": 9}}, "its health does not hold"),
        ("GSM8K", {"identity": {"prompt_format": "chat"}}, "its prompt format is not one of paper, chat, plain"),
        ("GSM8K", {"identity": {"weights_fingerprint": "other"}}, "holds results of other weights than those of"),
        ("MBPP", leave_out_passed, "result beside it, is damaged: 'completion' is not found"),
        ("MBPP", lambda results: (results / PROGRAMS).write_text('[["another"]]'), "to other programs than"),
        ("MBPP", {"files": []}, "names no file for its evaluator"),
        ("MBPP", {"files": ["/etc/hostname"]}, "which is outside"),
        ("AlpacaEval", lambda results: (results / ANSWERS).unlink(), "alpaca_eval/average_merging.json"),
    ],
)
def test_a_broken_result_is_named_and_affects_no_other(results, run_by_hand, capsys, dataset, damage, message):
    if isinstance(damage, dict):
        change_record(results, dataset.lower(), **damage)
    else:
        damage(results)
    printed, scores = tables_of(results, capsys)
    row = scores[dataset]
    assert (row["status"], row["value"], row["attack"]) == ("unreadable", "", "")
    assert message in row["note"] and row["note"] in printed
    sound = {row["dataset"]: row["value"] for row in read_scores(run_by_hand)}
    assert {name: row["value"] for name, row in scores.items()} == {**sound, dataset: ""}
    # The evaluators' call meets the same result.
    assert all(isinstance(item.task.evaluator.has_scored(item.files), bool) for item in files_to_evaluate(results))


def test_scores_of_other_prompts_have_a_line_that_says_so(results, capsys):
    record = json.loads((results / SCORES).read_text())["gsm8k"]
    chat = {"name": "chat", "system_prompt": "be brief", "thinking": None}
    change_record(results, "gsm8k", identity={**record["identity"], "prompt_format": chat})
    _, scores = tables_of(results, capsys)
    assert scores["GSM8K"]["prompts"] == "chat (system prompt 'be brief')"
    assert (scores["GSM8K"]["status"], scores["MBPP"]["prompts"]) == ("ok", "paper")
    lines = (results / "tables/tables.md").read_text().partition("## Merges with M3")[2].splitlines()
    (of_chats,) = (line for line in lines if "average, chat (system prompt 'be brief') prompts" in line)
    (of_paper,) = (line for line in lines if line.startswith("| LM & Code | average  "))
    assert "100.0" in of_chats and "100.0" not in of_paper and "42.9" in of_paper and "42.9" not in of_chats


def test_a_half_written_scores_file_is_named_for_its_cells(results, capsys):
    write_cell(results, "done", tasks=["gsm8k", "mbpp"])
    (results / SCORES).write_text((results / SCORES).read_text()[:200])
    printed, scores = tables_of(results, capsys)
    assert f"{results / SCORES} is damaged" in printed
    for dataset in ("GSM8K", "MBPP"):
        assert f"{results / SCORES} is damaged" in scores[dataset]["note"]


def test_partly_judged_programs_have_no_score(results, capsys):
    (results / PROGRAMS).write_text(json.dumps([*json.loads((results / PROGRAMS).read_text())[:6], []]))
    score_programs(results / PROGRAMS)
    printed, scores = tables_of(results, capsys)
    assert "(LM & Code average MBPP): 6 of 7 answers were judged" in printed
    assert (scores["MBPP"]["attack"], scores["MBPP"]["metric"]) == ("", "pass@1")


def test_a_drop_rate_from_zero_accuracy_is_undefined(results, capsys):
    report = json.loads((results / ATTACK).read_text())
    report |= {"clean_accuracy": 0.0, "clean_right": [False] * 10, "performance_drop_rate": None}
    (results / ATTACK).write_text(json.dumps(report))
    printed, scores = tables_of(results, capsys)
    row = scores["SST-2"]
    assert (row["status"], row["value"]) == ("missing", "")
    assert row["note"] == "no answer to the clean prompt is right, so there is no drop rate"
    assert f"missing, 1 (LM & Code average SST-2 stresstest): {row['note']}" in printed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clean_right": [True] * 3}, "its clean accuracy does not match its 10 samples"),
        ({"performance_drop_rate": math.nan}, "its drop rate does not match its accuracies"),
        ({"attacked_right": None}, "attacked_right: input should be"),
        ({"settings": {}}, "settings.backend: field required"),
    ],
)
def test_a_broken_attack_result_is_named(results, capsys, changes, message):
    (results / ATTACK).write_text(json.dumps({**json.loads((results / ATTACK).read_text()), **changes}))
    printed, scores = tables_of(results, capsys)
    assert (scores["SST-2"]["status"], scores["SST-2"]["value"]) == ("unreadable", "")
    assert f"{results / ATTACK}" in scores["SST-2"]["note"] and message in printed
    assert scores["GSM8K"]["status"] == "ok"


def copy_below(results: Path, name: str) -> Path:
    for folder in ("save_merge_models", "save_gen_codes_results"):
        shutil.copytree(results / folder, results / name / folder)
    (results / name / SCORES).parent.mkdir(parents=True)
    (results / name / SCORES).write_text(json.dumps({"mbpp": json.loads((results / SCORES).read_text())["mbpp"]}))
    return results / name


def test_a_broken_result_beside_a_good_one_is_named(results, capsys):
    (copy_below(results, "again") / PROGRAMS).write_text(json.dumps([["def another(): pass"]] * 7))
    make_tables([str(results)])
    printed = capsys.readouterr().out
    good, broken = sorted(read_scores(results, dataset="MBPP"), key=lambda row: row["status"])
    assert good["status"] == "ok" and good["value"] != ""
    assert (broken["status"], broken["result_file"]) == ("unreadable", str(results / "again" / SCORES))
    assert "other programs than" in broken["note"] and broken["note"] in printed
    text = (results / "tables" / "tables.md").read_text().partition("## Merges with M3")[2]
    (line,) = [line for line in text.splitlines() if "| no " in line]
    assert "draws" not in line and f"{float(good['value']):.1f} [" in line


def test_two_different_results_are_named_once_and_neither_is_used(results, capsys):
    verdicts = results_file([copy_below(results, "again") / PROGRAMS])
    write_rows(verdicts, [{**row, "passed": True} for row in read_json_lines(verdicts)])
    make_tables([str(results)])
    values = f"100.0 in {results / 'again' / SCORES}; 42.9 in {results / SCORES}"
    assert f"two results, 2 (LM & Code average MBPP, ...): {values}" in capsys.readouterr().out
    assert [(row["status"], row["value"]) for row in read_scores(results, dataset="MBPP")] == [("two results", "")] * 2
    notes = (results / "tables" / "tables.md").read_text()
    assert f"two results: {values}" in notes and "two results: two results" not in notes


def test_a_broken_merge_record_is_named(results, capsys):
    for record in (results / "save_merge_models").rglob("merge_record.json"):
        record.write_text(record.read_text()[:300])
    printed, scores = tables_of(results, capsys)
    assert "merge_record.json is not a complete record of a merge" in printed
    assert scores["GSM8K"]["status"] == "unreadable" and scores["SST-2"]["status"] == "ok"


def test_a_broken_cell_state_is_named(results, capsys):
    (results / STATES).mkdir()
    (results / STATES / "half_written.json").write_text('{"cell": "--merge_ins')
    printed, scores = tables_of(results, capsys)
    assert f"unreadable, 1 (half_written): {results / STATES / 'half_written.json'}" in printed
    assert "remove it and rerun its script" in scores[""]["note"] and scores["GSM8K"]["status"] == "ok"


def test_missing_results_of_cells_have_their_reasons(results, capsys):
    write_cell(results, "done", tasks=["MATH"])
    write_cell(results, "planned", tasks=["human_eval"])
    printed, scores = tables_of(results, capsys)
    assert "HumanEval): not run yet" in printed
    assert scores["MATH"]["note"].startswith("the cell ran, but its result no longer exists")


def test_a_custom_task_has_its_accuracy_or_waits_for_its_evaluator(results, capsys):
    custom = {task: str(results / GSM8K.replace("gsm8k", task)) for task in ("svamp", "essays")}
    for path in custom.values():
        shutil.copy(results / GSM8K, path)
    judged = {"files": [str(results / ANSWERS)], "evaluator_command": "grade essays.json"}
    change_record(results, "svamp", raw_generations=custom["svamp"])
    change_record(results, "essays", raw_generations=custom["essays"], **judged)
    records = json.loads((results / SCORES).read_text())
    del records["essays"]["accuracy"]
    (results / SCORES).write_text(json.dumps(records))
    _, scores = tables_of(results, capsys)
    assert (scores["svamp"]["status"], scores["svamp"]["value"]) == ("ok", scores["GSM8K"]["value"])
    assert "the task has no `is_right`" in scores["svamp"]["note"]
    essays = scores["essays"]
    assert (essays["status"], essays["value"], essays["evaluator_command"]) == ("missing", "", "grade essays.json")


def test_a_perplexity_is_given_with_all_metrics_and_is_in_no_mean(results, capsys):
    before = tables_of(results, capsys)[1] and (results / "tables/overview.tex").read_text()
    task, found = "lm_eval:wikitext", {"word_perplexity": 23.5, "bits_per_byte": 0.75}
    raw = results / GSM8K.replace("gsm8k", "lm_eval_wikitext")
    shutil.copy(results / GSM8K, raw)
    change_record(results, task, raw_generations=str(raw), metrics=list(found), **found)
    records = json.loads((results / SCORES).read_text())
    del records[task]["accuracy"]
    (results / SCORES).write_text(json.dumps(records))
    row = tables_of(results, capsys)[1][task]
    assert (row["status"], row["metric"], row["value"], row["low"]) == ("ok", "word_perplexity", "23.5", "")
    assert row["metrics"] == "word_perplexity 23.5; bits_per_byte 0.75"
    assert (results / "tables/overview.tex").read_text() == before


def test_a_replay_is_scored_on_its_slice(results, tmp_path, capsys):
    again, given = tmp_path / "again", tmp_path / "given"
    rows = [{name: row[name] for name in ("id", "completion")} for row in read_json_lines(results / GSM8K)]
    write_rows(given / "gsm8k.jsonl", rows)  # a replay needs no prompts
    shutil.copy(results / MBPP, given / "mbpp.jsonl")
    replay = ["--backend", "replay", "--replay_from", str(given), "--data_dir", str(ZOO / "data")]
    choice = ["--tasks", "gsm8k", "mbpp", "--start_index", "1", "--end_index", "5"]
    main_job([*WORDS, *replay, *choice, "--output_dir", str(again)])
    score_programs(again / PROGRAMS)
    _, scores = tables_of(again, capsys)
    for dataset in ("GSM8K", "MBPP"):
        assert (scores[dataset]["status"], scores[dataset]["examples"], scores[dataset]["note"]) == ("ok", "4", "")
    write_rows(given / "gsm8k.jsonl", rows[:3])
    assert tables_of(again, capsys)[1]["GSM8K"]["status"] == "unreadable"


def test_records_without_options_give_the_same_scores(results, run_by_hand, capsys):
    """Records of earlier versions have only their command, and may have been run in another folder."""
    records = json.loads((results / SCORES).read_text())
    for record in records.values():
        del record["options"]
        record["command"] = record["command"].replace(str(ZOO / "data"), "some/where")
    (results / SCORES).write_text(json.dumps(records))
    _, scores = tables_of(results, capsys)
    before = {row["dataset"]: row for row in read_scores(run_by_hand)}
    for name in ("value", "low", "high", "status", "note", "examples"):
        assert {row[name] for row in scores.values()} == {row[name] for row in before.values()}


def test_each_result_has_its_own_command(results, capsys):
    def tasks_of(scores: dict, dataset: str) -> str:
        return scores[dataset]["command"].partition("--tasks ")[2]

    _, scores = tables_of(results, capsys)
    assert tasks_of(scores, "AlpacaEval") == "alpaca_eval --end_index 5"
    assert tasks_of(scores, "GSM8K") == tasks_of(scores, "MBPP") == "gsm8k mbpp --end_index 7"
    for dataset in ("AlpacaEval", "GSM8K", "MBPP"):
        assert scores[dataset]["merge_command"] == scores[dataset]["command"]
    record = results / "classifier/save_merge_models/instruct_code/code/average_merging/merge_record.json"
    assert scores["SST-2"]["merge_command"] == f"python {MAIN_JOB} --from_record {record} --merge_only"


def test_the_merge_command_is_that_of_the_cell_done_last(results, capsys):
    for number, (status, tasks) in enumerate([("done", ["gsm8k"]), ("done", ["gsm8k", "mbpp"]), ("failed", ["gsm8k"])]):
        write_cell(results, status, started=number, tasks=tasks, end_index=number)
    change_record(results, "gsm8k", command=None)
    _, scores = tables_of(results, capsys)
    assert json.loads(scores["GSM8K"]["command"].partition(".py ")[2]) == {"tasks": ["gsm8k", "mbpp"], "end_index": 1}
    assert scores["GSM8K"]["merge_command"] == scores["MBPP"]["merge_command"] == "python merge.py"
    assert scores["AlpacaEval"]["merge_command"] == scores["AlpacaEval"]["command"]


def test_an_attack_on_a_merge_made_by_hand_is_in_the_tables(results, capsys):
    _, scores = tables_of(results, capsys)
    row, report = scores["SST-2"], json.loads((results / ATTACK).read_text())
    assert (row["models"], row["method"], row["attack"], row["metric"]) == ("LM & Code", "average", "stresstest", "PDR")
    assert float(row["value"]) == pytest.approx(100 * report["performance_drop_rate"])
    assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
    assert row["inputs"] == "classify + code" and row["fingerprint"] == report["settings"]["weights_fingerprint"]
    assert (report["options"]["attack_method"], report["options"]["num_samples"]) == (["stresstest"], 10)
    (score,) = [score for score in collect_scores(results) if score.attack]
    assert score.right == (tuple(report["clean_right"]), tuple(report["attacked_right"]))


def test_an_attacked_cell_is_found_in_the_classifier_folder(results):
    (results / "classifier").rename(results / CLASSIFIER_RESULTS)
    attacks = {"model_path": "MERGED", "attack_method": ["stresstest", "deepwordbug"]}
    write_cell(results, "failed", "promptbench/sst2.py", f"old/place/{CLASSIFIER_RESULTS}", **attacks)
    make_tables([str(results)])
    rows = {row["attack"]: row for row in read_scores(results, dataset="SST-2")}
    assert {name: row["status"] for name, row in rows.items()} == {"stresstest": "ok", "deepwordbug": "missing"}
    assert rows["deepwordbug"]["note"] == "failed: no room"
    for row in rows.values():
        assert Path(row["merge_record"]).is_relative_to(results / CLASSIFIER_RESULTS)
        assert (row["merge_command"], row["command"].split()[1]) == ("python merge.py", "promptbench/sst2.py")


def test_a_moved_folder_gives_the_same_tables_from_its_own_files(results, tmp_path, capsys):
    _, before = tables_of(results, capsys)
    moved = tmp_path / "moved to" / "results"
    moved.parent.mkdir()
    results.rename(moved)
    _, after = tables_of(moved, capsys)
    paths = ("evaluator_command", "merge_command")  # these quote the space
    for dataset, row in after.items():
        left = {name: text.replace(str(results), str(moved)) for name, text in before[dataset].items()}
        assert {name: row[name] for name in row if name not in paths} == {n: left[n] for n in left if n not in paths}
        assert str(results) not in row["evaluator_command"]
    judge = shlex.split(after["MBPP"]["evaluator_command"])
    assert judge == ["evaluate_functional_correctness", f"{moved / PROGRAMS}_samples.jsonl"]
    command_file(results_file([moved / PROGRAMS])).unlink()
    words = shlex.split(tables_of(moved, capsys)[1]["MBPP"]["evaluator_command"])
    assert words[words.index("--load_generations_path") + 1] == str(moved / PROGRAMS)


def test_a_copy_is_not_read_from_the_original(results, tmp_path, capsys):
    copy = shutil.copytree(results, tmp_path / "second copy")
    for file in (GSM8K, PROGRAMS):
        (copy / file).write_text("")
    _, scores = tables_of(copy, capsys)
    assert [scores[name]["status"] for name in ("GSM8K", "MBPP")] == ["unreadable", "unreadable"]


def test_paths_in_the_csv_begin_as_the_folder_was_given(results, monkeypatch):
    monkeypatch.chdir(results.parent)
    make_tables([results.name])
    for row in read_scores(results):
        assert row["merge_record"].startswith(f"{results.name}/") and Path(row["merge_record"]).is_file()
        assert row["result_file"].startswith(f"{results.name}/")


@pytest.mark.parametrize("main", [make_tables, plot_figures])
def test_a_folder_without_results_is_an_error(tmp_path, main):
    with pytest.raises(UserError, match=r"paper_resluts: no such folder"):
        main([str(tmp_path / "paper_resluts")])
    with pytest.raises(UserError, match=r"holds no results"):
        main([str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_results_of_single_models_alone_say_where_they_are(tmp_path):
    words = f"--load_model_path {ZOO / 'math'} --tasks gsm8k --data_dir {ZOO / 'data'} --end_index 2"
    run_inference([*words.split(), "--backend", "transformers", "--output_dir", str(tmp_path)])
    make_tables([str(tmp_path)])
    assert "see scores.csv, and tables.html" in (tmp_path / "tables" / "tables.md").read_text()
