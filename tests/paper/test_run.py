"""A table run on the tiny models, from the shell; then what becomes of results that are missing, broken or doubled."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.make_tables import main as make_tables
from scripts.paper_tables.commands import Setting
from scripts.paper_tables.evaluate import evaluate
from scripts.plot_figures import main as plot_figures
from tests.inference_llms.support import ROOT, pass_at_1, read_json_lines, write_rows
from tests.paper.support import SCRIPTS, read_scores, run_script

TABLE = """
source {shared}
table=performance
models="--merge_instruct --merge_code --end_index 6 --tasks alpaca_eval gsm8k human_eval mbpp"
cell merge_llms_instruct_math_code.py $models --merging_method_name average_merging
cell merge_llms_instruct_math_code.py $models --merging_method_name average_merging --mixup --alpha 0.5 --seed 1
cell merge_llms_instruct_math_code.py $models --merging_method_name average_merging --start_index 70
cell_of_merge "--merge_instruct --merge_code --merging_method_name average_merging" \
    ood_robust_inference.py --load_model_path MERGED --evaluate_task typos --livebench_release 2024-11-25
run_cells "$@"
"""
NAME = "instruct_code/average_merging"


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    script = tmp_path_factory.mktemp("table") / "small.sh"
    script.write_text(TABLE.format(shared=SCRIPTS / "shared.sh"))
    return script


@pytest.fixture(scope="module")
def first_run(table):
    """The results of four cells, one of which cannot run, and what the run said."""
    results = table.parent / "results"
    options = ["--results_dir", results, "--allow_code_execution", "--delete_merged_models"]
    return results, run_script(table, "--models", "tiny", *options)


@pytest.fixture
def results(first_run, tmp_path) -> Path:
    """A copy of them, to be spoilt; what is on record still names the original."""
    copy = tmp_path / "results"
    shutil.copytree(first_run[0], copy)
    return copy


def scores_of(results: Path, **wanted: str) -> list[dict[str, str]]:
    return [row for row in read_scores(results) if all(row[name] == value for name, value in wanted.items())]


def tables_again(results: Path, capsys) -> str:
    """The tables made of spoilt results; returns what was said of them."""
    capsys.readouterr()
    make_tables([str(results)])
    assert (results / "tables" / "tables.html").is_file()
    return capsys.readouterr().out


def test_a_failed_cell_stops_no_other_and_is_told_at_the_end(first_run):
    results, done = first_run
    assert done.returncode == 2
    assert "failed, 1 cells: --end_index must be larger than --start_index" in done.stdout
    assert done.stderr.startswith("error: some cells failed")
    assert {row["status"] for row in read_scores(results)} == {"ok"}
    for name in ("performance.png", "performance.svg", "robustness.png"):
        assert (results / "figures" / name).stat().st_size > 1000


def test_weights_go_when_all_is_asked_of_them_and_records_stay(first_run):
    results, _ = first_run
    assert not list(results.rglob("*.safetensors"))
    assert len(list((results / "merge_records").rglob("*.json"))) == 2


def test_each_score_tells_its_command_its_merge_record_and_its_interval(first_run):
    results, _ = first_run
    scores = read_scores(results)
    assert {row["dataset"] for row in scores} == {"AlpacaEval", "GSM8K", "HumanEval", "MBPP", "LiveBench-TypoFixing"}
    for row in scores:
        record = json.loads(Path(row["merge_record"]).read_text())
        assert record["fingerprint"] == row["fingerprint"]
        assert row["inputs"] == "instruct + code"
        assert shlex.split(row["command"])[0] == "python" and shlex.split(row["merge_command"])[0] == "python"
        assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
    drawn = [row for row in scores if row["mixup"] == "True"]
    assert {(row["alpha"], row["seed"]) for row in drawn} == {("0.5", "1")}
    assert all(len(row["ratios"].split()) == 2 for row in drawn)


def test_a_cell_that_is_run_again_by_its_command_gives_the_same_value(first_run, tmp_path):
    results, _ = first_run
    (row,) = scores_of(results, dataset="GSM8K", mixup="True")
    words = shlex.split(row["command"])
    assert words[-2] == "--output_dir"
    again = subprocess.run(
        [sys.executable, *words[1:-1], tmp_path / "again"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    make_tables([str(tmp_path / "again")])
    (same,) = scores_of(tmp_path / "again", dataset="GSM8K")
    assert (same["value"], same["fingerprint"]) == (row["value"], row["fingerprint"])
    assert same["command"].split(" --output_dir ")[0] == row["command"].split(" --output_dir ")[0]


def test_cells_already_done_are_skipped(first_run, table):
    results, _ = first_run
    before = {path: path.stat().st_mtime_ns for path in results.rglob("save_raw_generations/**/*.jsonl")}
    done = run_script(table, "--models", "tiny", "--results_dir", results, "--allow_code_execution")
    assert "4 cells: 0 done now, 3 before, 1 failed" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_files_are_in_the_forms_of_the_evaluators(first_run):
    results, _ = first_run
    answers = json.loads(
        (results / "save_gen_instruct_responses_results/instruct_code/alpaca_eval/average_merging.json").read_text()
    )
    assert [list(row) for row in answers] == [["instruction", "output", "generator", "dataset"]] * 6
    programs = json.loads((results / "save_gen_codes_results/instruct_code/mbpp/average_merging.jsonl").read_text())
    assert len(programs) == 60 and [len(of_task) for of_task in programs] == [1] * 6 + [0] * 54
    assert all(isinstance(of_task[0], str) for of_task in programs[:6])
    samples = results / "save_gen_codes_results/instruct_code/human_eval/average_merging.jsonl"
    assert [list(row) for row in read_json_lines(samples)] == [["task_id", "completion", "all_code"]] * 6
    (model_answers,) = (results / "save_gen_typos_livebench_results/language/typos/model_answer").glob("*.jsonl")
    for row in read_json_lines(model_answers):
        assert list(row) == ["question_id", "answer_id", "model_id", "choices", "tstamp"]
        assert row["choices"][0]["index"] == 0 and isinstance(row["choices"][0]["turns"][0], str)
        assert row["model_id"] == model_answers.stem


@pytest.mark.parametrize("dataset", ["HumanEval", "MBPP"])
def test_the_evaluator_itself_gives_the_value_in_the_table(first_run, dataset):
    results, _ = first_run
    (row,) = scores_of(results, dataset=dataset, mixup="False")
    assert 100 * pass_at_1(row["evaluator_command"]) == pytest.approx(float(row["value"]))


def test_a_score_names_no_evaluator_that_did_not_score(first_run):
    results, _ = first_run
    (row,) = scores_of(results, dataset="AlpacaEval", mixup="False")
    assert (row["metric"], row["evaluator_command"]) == ("agreement", "")
    (row,) = scores_of(results, dataset="MBPP", mixup="False")
    assert "accelerate" not in row["evaluator_command"]


def test_results_are_judged_by_the_set_that_the_run_asked(results, tmp_path, capsys):
    before = {row["dataset"]: row["value"] for row in scores_of(results, mixup="False")}
    for path in [*results.rglob("mbpp/*_results.jsonl"), *results.rglob("*_agreement.json")]:
        path.unlink()
    other = tmp_path / "other"
    rows = read_json_lines(ROOT / "scripts/tiny_zoo/data/mbpp.test.jsonl")
    write_rows(other / "mbpp.test.jsonl", [{**row, "test_list": ["assert False"]} for row in rows])
    instructions = json.loads((ROOT / "scripts/tiny_zoo/data/alpaca_eval.json").read_text())
    (other / "alpaca_eval.json").write_text(json.dumps([{**row, "output": "another"} for row in instructions]))
    evaluate(Setting(results, "tiny", other, "transformers", None), allow_code_execution=True)
    tables_again(results, capsys)
    assert before["MBPP"] != "0.0"
    assert {row["dataset"]: row["value"] for row in scores_of(results, mixup="False")} == before


def test_the_reference_of_a_run_with_data_of_its_own_is_that(results, tmp_path, capsys):
    answers = results / "save_gen_instruct_responses_results/instruct_code/alpaca_eval/average_merging.json"
    answers.with_name(f"{answers.name}_agreement.json").unlink()
    rows = [{**row, "output": row["output"].strip()} for row in json.loads(answers.read_text())]
    own = tmp_path / "own" / "alpaca_eval.json"
    own.parent.mkdir()
    own.write_text(json.dumps(rows))
    scores = results / "save_scores" / f"{NAME}.json"
    of_tasks = json.loads(scores.read_text())
    of_tasks["alpaca_eval"]["data_dir"] = str(own.parent)
    scores.write_text(json.dumps(of_tasks))
    evaluate(Setting(results, "tiny", own.parent, "transformers", None), allow_code_execution=False)
    tables_again(results, capsys)
    (row,) = scores_of(results, dataset="AlpacaEval", mixup="False")
    assert float(row["value"]) == 100


def test_a_missing_result_is_named_and_its_cell_marked(results, capsys):
    scores = results / "save_scores" / f"{NAME}.json"
    kept = {task: score for task, score in json.loads(scores.read_text()).items() if task != "gsm8k"}
    scores.write_text(json.dumps(kept))
    assert "missing, 1 (LM & Code average GSM8K)" in tables_again(results, capsys)
    (row,) = scores_of(results, dataset="GSM8K", mixup="False")
    assert (row["status"], row["value"]) == ("missing", "")
    assert "– [1]" in (results / "tables" / "tables.md").read_text()


def test_a_half_written_result_is_named_and_its_cells_marked(results, capsys):
    scores = results / "save_scores" / f"{NAME}.json"
    scores.write_text(scores.read_text()[:200])
    assert f"{scores} is not whole" in tables_again(results, capsys)
    assert all(row["value"] == "" for row in scores_of(results, mixup="False"))
    assert all(row["value"] != "" for row in scores_of(results, mixup="True"))


def test_two_results_for_one_cell_are_named_and_neither_is_taken(results, capsys):
    for folder in ("save_scores", "merge_records", "save_raw_generations"):
        shutil.copytree(results / folder, results / "again" / folder)
    scores = results / "again" / "save_scores" / f"{NAME}.json"
    of_tasks = json.loads(scores.read_text())
    raw = results / "again" / "save_raw_generations" / NAME / "gsm8k.jsonl"
    rows = [{**row, "completion": "The answer is: -12345"} for row in read_json_lines(raw)]
    raw.write_text("".join(json.dumps(row) + "\n" for row in rows))
    of_tasks["gsm8k"] |= {"accuracy": 0.0, "raw_generations": str(raw)}
    scores.write_text(json.dumps({"gsm8k": of_tasks["gsm8k"]}))
    (results / "again" / "save_scores" / "instruct_code").glob("*mixup*").__next__().unlink()
    told = tables_again(results, capsys)
    assert "two results" in told and str(scores) in told
    rows = scores_of(results, dataset="GSM8K", mixup="False")
    assert [(row["status"], row["value"]) for row in rows] == [("two results", "")] * 2


def test_a_score_that_is_not_that_of_its_completions_is_named_and_not_taken(results, capsys):
    scores = results / "save_scores" / f"{NAME}.json"
    of_tasks = json.loads(scores.read_text())
    of_tasks["gsm8k"]["accuracy"] = 0.123
    scores.write_text(json.dumps(of_tasks))
    assert "do not have the accuracy on record" in tables_again(results, capsys)
    assert [row["value"] for row in scores_of(results, dataset="GSM8K", mixup="False")] == [""]


def test_an_evaluator_that_fails_is_named_and_its_cell_marked(results, capsys):
    programs = results / "save_gen_codes_results/instruct_code/human_eval/average_merging.jsonl"
    programs.write_text(programs.read_text()[:-40])
    for path in results.rglob("human_eval/*_results.jsonl"):
        path.unlink()
    evaluate(Setting(results, "tiny", None, "transformers", None), allow_code_execution=True)
    assert "is not JSON" in tables_again(results, capsys)
    (row,) = scores_of(results, dataset="HumanEval", mixup="False")
    assert (row["status"], row["value"]) == ("missing", "") and "is not JSON" in row["note"]
    (row,) = scores_of(results, dataset="HumanEval", mixup="True")
    assert row["status"] == "ok"


def test_programs_that_changed_since_they_were_judged_have_no_score(results, capsys):
    programs = results / "save_gen_codes_results/instruct_code/mbpp/average_merging.jsonl"
    of_tasks = json.loads(programs.read_text())
    of_tasks[0] = ["def other(): pass"]
    programs.write_text(json.dumps(of_tasks))
    assert "of other programs than" in tables_again(results, capsys)
    (row,) = scores_of(results, dataset="MBPP", mixup="False")
    assert row["value"] == ""


def test_programs_are_not_run_unless_that_is_allowed(results, capsys):
    for path in results.rglob("*_results.jsonl"):
        path.unlink()
    evaluate(Setting(results, "tiny", None, "transformers", None), allow_code_execution=False)
    assert "needs --allow_code_execution" in tables_again(results, capsys)
    assert not list(results.rglob("*_results.jsonl"))
    assert {row["status"] for row in scores_of(results, dataset="MBPP")} == {"missing"}


def test_a_judges_win_rate_is_picked_up_where_the_command_leaves_it(results, capsys):
    answers = results / "save_gen_instruct_responses_results/instruct_code/alpaca_eval/average_merging.json"
    answers.with_name(f"{answers.name}_agreement.json").unlink()
    tables_again(results, capsys)
    (row,) = scores_of(results, dataset="AlpacaEval", mixup="False")
    assert row["status"] == "missing"
    words = shlex.split(row["evaluator_command"])
    assert words[:3] == ["alpaca_eval", "--model_outputs", str(answers)] and words[-2] == "--output_path"
    judged = Path(words[-1]) / "chatgpt_fn" / "annotations.json"
    judged.parent.mkdir(parents=True)
    rows = [
        {"instruction": row["instruction"], "output_2": row["output"], "preference": preference}
        for row, preference in zip(json.loads(answers.read_text()), (2, 2, 1, 2, 0, 1.5), strict=True)
    ]
    judged.write_text(json.dumps(rows))
    tables_again(results, capsys)
    (row,) = scores_of(results, dataset="AlpacaEval", mixup="False")
    assert (row["metric"], row["status"]) == ("win_rate", "ok") and float(row["value"]) == pytest.approx(66.666667)


def test_figures_leave_out_what_is_missing_and_are_drawn(results, capsys):
    (results / "save_scores" / f"{NAME}.json").unlink()
    plot_figures([str(results)])
    assert (results / "figures" / "performance.svg").is_file()


def test_a_folder_without_results_is_told(tmp_path):
    done = subprocess.run(
        [sys.executable, "scripts/make_tables.py", tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "holds no results" in done.stderr
