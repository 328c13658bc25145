"""LiveBench judges the answers of a run, and its own folder does not change.

A script with LiveBench's files, options and checks stands in for it; test_real_evaluators.py runs LiveBench itself.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from inference_llms.evaluators import livebench as livebench_judge
from inference_llms.evaluators.livebench import judgments_file, releases_of
from inference_llms.evaluators.results import Verdicts
from inference_llms.task import AnswerFiles
from inference_llms.tasks import TASKS
from ood_robust_inference import main as ood_robust_inference
from tests.inference_llms.support import ZOO, read_json_lines, write_rows
from utils.errors import UserError

TASK = "instruction_following"
# Answers that contain "right" are right. As in LiveBench: ids are lower-cased, each model must have answered every
# question, judgments are appended, and the last of each question and model is kept.
JUDGE = """
import argparse, glob, json, os, pathlib, time
parser = argparse.ArgumentParser()
parser.add_argument("--bench-name")
parser.add_argument("--model", nargs="+")
parser.add_argument("--livebench-release-option", default="2025-04-25")
parser.add_argument("--question-source", default="huggingface")
options = parser.parse_args()
assert options.question_source == "jsonl", "no network"
for file in pathlib.Path("data", options.bench_name).rglob("question.jsonl"):
    questions = [json.loads(line) for line in open(file)]
    questions = [q for q in questions if q["livebench_release_date"] <= options.livebench_release_option]
    answers = {}
    for path in file.parent.glob("model_answer/*.jsonl"):
        rows = [json.loads(line) for line in open(path)]
        answers[path.stem.lower()] = {row["question_id"]: row for row in rows}
    (file.parent / "model_judgment").mkdir(exist_ok=True)
    judged = file.parent / "model_judgment/ground_truth_judgment.jsonl"
    kept = [json.loads(line) for line in open(judged)] if judged.exists() else []
    for model in [name.lower() for name in options.model or answers]:
        for q in questions:
            assert q["question_id"] in answers[model], f"Missing model {model}'s answer"
            right = "right" in answers[model][q["question_id"]]["choices"][0]["turns"][0]
            kept.append({"question_id": q["question_id"], "task": q["task"], "model": model, "score": float(right),
                         "turn": 1, "tstamp": time.time()})
    last = {(row["question_id"], row["model"]): json.dumps(row) for row in kept}
    judged.write_text("".join(last[key] + "\\n" for key in sorted(last)))
"""


@pytest.fixture
def livebench(tmp_path, monkeypatch) -> Path:
    """LiveBench's folder, with answers of another model to half of the questions, and their judgments."""
    folder = tmp_path / "LiveBench" / "livebench"
    for task in ("instruction_following/story_generation", "instruction_following/summarize", "coding/LCB_generation"):
        place = folder / "data/live_bench" / task
        write_rows(place / "model_answer/others.jsonl", [{"question_id": "q", "choices": [{"turns": ["right"]}]}])
        write_rows(place / "model_judgment/ground_truth_judgment.jsonl", [OTHERS_JUDGMENT])
    (folder / "gen_ground_truth_judgment.py").write_text(JUDGE)
    (folder / "show_livebench_result.py").write_text("")
    monkeypatch.setenv("LIVEBENCH_DIR", str(folder))
    monkeypatch.setattr(livebench_judge, "FOLDER", tmp_path / "none")
    return folder


OTHERS_JUDGMENT = {"question_id": "q", "task": "t", "model": "others", "score": 1, "turn": 1, "tstamp": 1.0}


def answer(tmp_path: Path, completion: str = "right", task: str = TASK, model_id: str = "m", *options) -> AnswerFiles:
    """The files of a run that gives the same answer to every question of the tiny models' set."""
    files = sorted((ZOO / "data" / "live_bench" / task).glob("*/question.jsonl"))
    rows = [row for file in files for row in read_json_lines(file)]
    replay, out = tmp_path / f"replay_{model_id}", tmp_path / "results" / model_id
    write_rows(replay / f"{task}.jsonl", [{"id": row["question_id"], "completion": completion} for row in rows])
    words = ["--load_model_path", ZOO / "code", "--backend", "replay", "--replay_from", replay, "--model_id", model_id]
    words += ["--output_dir", out, "--data_dir", ZOO / "data", "--evaluate_task", task]
    ood_robust_inference([str(word) for word in (*words, *options)])
    record = json.loads((out / "save_scores/single_model/code.json").read_text())[task]
    return AnswerFiles(TASKS[task], tuple(map(Path, record["files"])), record["evaluator_command"], ZOO / "data")


def judge(answers: AnswerFiles) -> Verdicts:
    answers.task.evaluator.run(answers)
    return answers.task.evaluator.read(answers.files)


def refusal(answers: AnswerFiles) -> str:
    with pytest.raises(UserError) as error:
        judge(answers)
    assert "\n" not in str(error.value)
    return str(error.value)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_answers_are_judged_beside_a_model_with_missing_answers(livebench, tmp_path):
    theirs = livebench / "data/live_bench/instruction_following/summarize/question.jsonl"
    write_rows(theirs, [{"question_id": "theirs", "livebench_release_date": "2024-11-25", "task": "summarize"}])
    before = contents(livebench)
    found = judge(answer(tmp_path, model_id="average_TIES"))
    assert (found.score, found.examples) == (1.0, 6)
    assert found.command == (
        "python gen_ground_truth_judgment.py --bench-name m3_average_TIES/instruction_following "
        "--livebench-release-option 2024-11-25 --question-source jsonl --model average_TIES"
    )
    assert judge(answer(tmp_path, "no", model_id="wrong")).score == 0
    assert contents(livebench) == before


def test_judgments_made_elsewhere_are_kept_when_more_is_judged(livebench, tmp_path):
    answers = answer(tmp_path)
    judge(answers)
    judgments = judgments_file(answers.files[0])
    assert {row["model"] for row in read_json_lines(judgments)} == {"m"}
    old = [{**row, "score": 0.5, "tstamp": 0} for row in read_json_lines(judgments)]
    write_rows(judgments, [*old, OTHERS_JUDGMENT])
    judge(answers)
    assert {row["model"]: row["score"] for row in read_json_lines(judgments)} == {"others": 1, "m": 1.0}


def test_missing_questions_and_a_misspelt_folder_are_named(livebench, tmp_path, monkeypatch):
    answers = answer(tmp_path)
    (answers.files[0].parents[1] / "questions/m.jsonl").unlink()
    assert refusal(answers).endswith("the questions of m.jsonl, is missing; rerun the command of its answers")
    monkeypatch.setenv("LIVEBENCH_DIR", str(tmp_path / "LiveBensh"))
    assert refusal(answers).startswith(f"{tmp_path / 'LiveBensh'} holds no gen_ground_truth_judgment.py")
    assert not (tmp_path / "LiveBensh").exists()


def test_newer_code_that_stops_on_the_public_questions_is_named(livebench, tmp_path):
    (livebench / "common.py").write_text('LIVE_BENCH_RELEASES = {"2024-06-24", "2025-04-02", "2024-11-25"}\n')
    expected = "LiveBench's code for release 2025-04-02, which stops on the public questions; remove it"
    assert expected in refusal(answer(tmp_path))


def test_a_slice_is_judged_on_its_own_questions_in_the_chosen_release(livebench, tmp_path):
    answers = answer(tmp_path, "right", TASK, "m", "--end_index", "2", "--livebench_release", "2024-12-01")
    assert "--livebench-release-option 2024-12-01 " in answers.command
    found = judge(replace(answers, release="2024-12-01"))
    assert (found.score, found.examples) == (1, 2) and "--livebench-release-option 2024-12-01 " in found.command


def test_every_answer_is_judged_in_a_release_that_has_its_question():
    dates = {"old": ("2024-06-24", "2024-11-25"), "kept": ("2024-06-24", ""), "new": ("2024-11-25", "")}
    rows = [{"livebench_release_date": out, "livebench_removal_date": gone} for out, gone in dates.values()]
    assert releases_of(rows) == ["2024-08-31", "2024-11-25"]
    assert releases_of(rows[1:]) == ["2024-11-25"]


def test_a_program_that_stops_the_judge_scores_zero_alone(guarded, livebench, tmp_path):
    answers = "[open(path).read() for path in glob.glob('data/**/m.jsonl', recursive=True)]"
    stop = f"if any('stop' in text for text in {answers}): os.kill(os.getpid(), 9)"
    (livebench / "gen_ground_truth_judgment.py").write_text(f"import glob, os\n{stop}\n{JUDGE}")
    files = answer(tmp_path, "right", "coding")
    files.files[0].write_text(files.files[0].read_text().replace('"right"', '"stop"', 1))
    found = judge(files)
    assert sorted(found.values) == [0] + [1] * (found.examples - 1)


def test_programs_are_judged_in_the_guard(guarded, livebench, tmp_path):
    network = (
        "import socket\ntry: socket.create_connection(('192.0.2.1', 80), 5)\nexcept OSError as e: assert e.errno == 101"
    )
    (livebench / "gen_ground_truth_judgment.py").write_text(f"{network}\nelse: 1 / 0\n{JUDGE}")
    assert judge(answer(tmp_path, "right", "coding")).score == 1


def test_the_printed_command_does_what_the_call_does(livebench, tmp_path, monkeypatch):
    answers = answer(tmp_path)
    command = answers.task.evaluator.full_command(answers.files, answers.command)
    interpreter = tmp_path / "bin" / "python"
    interpreter.parent.mkdir()
    interpreter.symlink_to(sys.executable)

    def run_printed_command(folder: Path) -> subprocess.CompletedProcess:
        environment = {"PATH": f"{interpreter.parent}:/usr/bin:/bin"}
        return subprocess.run(["sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)

    (tmp_path / "elsewhere").mkdir()
    assert run_printed_command(tmp_path / "elsewhere").returncode != 0 and not list((tmp_path / "elsewhere").iterdir())
    done = run_printed_command(livebench)
    assert done.returncode == 0, done.stderr
    found = answers.task.evaluator.read(answers.files)
    assert (found.score, found.examples) == (1.0, 6)
    assert judge(answers).command in command
    monkeypatch.delenv("LIVEBENCH_DIR")
    assert "not installed" in refusal(answers)
