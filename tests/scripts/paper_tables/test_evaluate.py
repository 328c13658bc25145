"""Evaluators called on the files of runs: their sets, their permission, and the printed commands."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from inference_llms.evaluators.alpaca_eval import Judge
from inference_llms.evaluators.human_eval import results_file
from scripts.make_tables import main as make_tables
from scripts.paper_tables.cell_runs import Setting
from scripts.paper_tables.evaluate import evaluate
from scripts.paper_tables.run_cells import main as run_cells
from tests.commands import run_here
from tests.inference_llms.evaluators.judge_server import judge_server
from tests.inference_llms.evaluators.test_real_evaluators import needs
from tests.inference_llms.support import read_json_lines, write_rows
from tests.scripts.paper_tables.conftest import PROGRAMS
from tests.scripts.paper_tables.support import ZOO, read_scores
from tests.scripts.paper_tables.test_collect import ANSWERS, SCORES, change_record

AGREEMENT = f"{ANSWERS}_agreement.json"


def call(results: Path, data_dir: Path | None = None, allow: bool = False) -> dict[str, dict[str, str]]:
    """Call the evaluators and make the tables; the scores by data set."""
    evaluate(Setting(results, "tiny", data_dir, "transformers", None, allow_code_execution=allow))
    make_tables([str(results)])
    return {row["dataset"]: row for row in read_scores(results)}


def test_results_are_judged_by_the_set_of_their_run(results, tmp_path):
    results_file([results / PROGRAMS]).unlink()
    other = tmp_path / "other"
    rows = read_json_lines(ZOO / "data/mbpp.test.jsonl")
    write_rows(other / "mbpp.test.jsonl", [{**row, "test_list": ["assert False"]} for row in rows])
    instructions = json.loads((ZOO / "data/alpaca_eval.json").read_text())
    (other / "alpaca_eval.json").write_text(json.dumps([{**row, "output": "another"} for row in instructions]))
    with_other = call(shutil.copytree(results, tmp_path / "copy2"), other, allow=True)
    usual = call(results, allow=True)
    for dataset in ("MBPP", "AlpacaEval"):
        assert usual[dataset]["status"] == "ok" and with_other[dataset]["value"] == usual[dataset]["value"]
    assert (usual["AlpacaEval"]["metric"], usual["AlpacaEval"]["evaluator_command"]) == ("agreement", "")


def test_programs_do_not_run_without_permission(results, capsys):
    results_file([results / PROGRAMS]).unlink()
    row = call(results)["MBPP"]
    assert (row["status"], row["note"]) == ("missing", "needs --allow_code_execution: it runs generated programs")
    assert row["note"] in capsys.readouterr().out and not list(results.rglob("*_results.jsonl"))


@needs("alpaca_eval")
def test_another_judge_judges_the_same_answers_again(results):
    (results / AGREEMENT).unlink(missing_ok=True)
    with judge_server() as (url, requests):
        for name in ("first", "second", "second"):
            judge = Judge(model=name, base_url=url)
            evaluate(Setting(results, None, ZOO / "data", "transformers", None, judge=judge))
        make_tables([str(results)])
    assert [request["model"] for request in requests] == ["first"] * 5 + ["second"] * 5
    row = {row["dataset"]: row for row in read_scores(results)}["AlpacaEval"]
    assert (row["status"], row["metric"]) == ("ok", "win_rate") and "_judge --fn_metric" in row["evaluator_command"]


def test_the_tiny_models_have_no_judge():
    done = run_here(run_cells, ["performance", "--models", "tiny", "--judge_model", "a"])
    assert done.returncode == 2 and "alpaca_eval have no judge; remove" in done.stderr


def test_files_that_no_evaluator_can_read_are_named(results, capsys):
    answers = json.loads((results / ANSWERS).read_text())
    (results / ANSWERS).write_text(json.dumps([{**answers[0], "instruction": "not in the set"}, *answers[1:]]))
    (results / PROGRAMS).write_text("[1, 2]")
    results_file([results / PROGRAMS]).unlink()
    change_record(results, "svamp", evaluator_command="svamp_judge", files=[str(results / ANSWERS)])
    scores = call(results, allow=True)
    assert "lacks 1 of the instructions answered" in scores["AlpacaEval"]["note"]
    assert str(results / PROGRAMS) in scores["MBPP"]["note"]
    printed = capsys.readouterr().out
    for dataset in ("AlpacaEval", "MBPP"):
        assert (scores[dataset]["status"], scores[dataset]["value"]) == ("missing", "")
        assert scores[dataset]["note"] in printed


def test_a_win_rate_is_read_where_the_printed_command_leaves_it(results):
    make_tables([str(results)])
    (row,) = read_scores(results, dataset="AlpacaEval")
    assert (row["status"], row["note"]) == ("missing", "not judged yet: its command is in scores.csv")
    words = shlex.split(row["evaluator_command"])
    assert Path(words[0]).name == "alpaca_eval" and words[1:3] == ["--model_outputs", str(results / ANSWERS)]
    assert words[-2] == "--output_path"
    judged = Path(words[-1]) / "chatgpt_fn" / "annotations.json"
    judged.parent.mkdir(parents=True)
    answers = zip(json.loads((results / ANSWERS).read_text()), (2, 2, 1, 0, 1.5), strict=True)
    rows = [{"instruction": row["instruction"], "output_2": row["output"], "preference": p} for row, p in answers]
    judged.write_text(json.dumps(rows))
    make_tables([str(results)])
    (row,) = read_scores(results, dataset="AlpacaEval")
    assert (row["metric"], row["status"]) == ("win_rate", "ok") and float(row["value"]) == pytest.approx(60)


def test_a_remaining_command_is_printed_once(results, caplog):
    caplog.set_level("INFO")
    results_file([results / PROGRAMS]).unlink()
    scores = results / SCORES
    scores.with_name("copy.json").write_text(scores.read_text())
    call(results)
    assert sum("accelerate launch" in line for line in caplog.messages) == 1
