"""Data sets: the choice of file, and one line for each fault."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from inference_llms.tasks import TASKS
from tests.inference_llms.support import ROOT, write_rows
from utils.errors import UserError

GOOD = {"question": "1+1?", "answer": "#### 2"}
MBPP = {"text": "t", "test_list": ["assert f()"]}
PROBLEM = {"task_id": "T/1", "prompt": "def f():\n", "entry_point": "f", "test": "def check(f): f()"}


def refusal(task: str, data_dir: Path) -> str:
    with pytest.raises(UserError) as error:
        TASKS[task].load_examples(data_dir)
    assert "\n" not in str(error.value)
    return str(error.value)


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("gsm8k_test.jsonl", lines(GOOD) + "\n{broken\n", "gsm8k_test.jsonl line 3 is not JSON"),
        ("gsm8k_test.jsonl", lines(GOOD, {"question": "q"}), "gsm8k_test.jsonl line 2 lacks the field 'answer'"),
        ("gsm8k_test.jsonl", lines(GOOD | {"question": 3}), "line 1: the field 'question' must be text"),
        ("gsm8k_test.jsonl", lines(GOOD | {"answer": "two"}), "line 1: the field 'answer' must end in"),
        ("gsm8k_test.jsonl", lines(GOOD | {"question": "\ud800"}), "line 1 holds half a surrogate pair"),
        ("gsm8k_test.jsonl", "[" * 100_000 + "\n", "line 1 is not JSON"),
        ("gsm8k_test.jsonl", "[1]\n", "line 1 is not a JSON object"),
        ("gsm8k_test.jsonl", "\n\n", "gsm8k_test.jsonl holds no examples"),
        ("gsm8k_test.jsonl", b"\xff\xfe\x00", "is not UTF-8"),
        ("gsm8k_test.jsonl/x", "", "gsm8k_test.jsonl is a folder"),
        ("alpaca_eval.json", "[{},\n{broken", "line 2 is not JSON"),
        ("alpaca_eval.json", "{}", "is not a JSON list"),
        ("alpaca_eval.json", "[]", "no examples"),
        ("alpaca_eval.json", "[" * 100_000, "too deep"),
        ("alpaca_eval.json", "[{}]", "row 1 lacks"),
        ("mbpp.test.jsonl", lines(MBPP | {"task_id": 9}, MBPP | {"task_id": 9}), "line 2 repeats the task_id 9 of"),
        ("mbpp.test.jsonl", lines(MBPP | {"task_id": 1, "test_list": [3]}), "'test_list' must hold texts"),
        ("HumanEval.jsonl.gz", gzip.compress(lines(PROBLEM).encode(), mtime=0)[:-12], "is not a complete gzip file"),
    ],
)
def test_a_fault_is_named_with_its_file_line_and_field(tmp_path, file, text, message):
    task = {"gsm8k_test": "gsm8k", "mbpp": "mbpp", "HumanEval": "human_eval"}.get(file.split(".")[0], "alpaca_eval")
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    error = refusal(task, tmp_path)
    assert message in error and str(tmp_path) in error


def test_files_are_read_packed_or_not_and_whole_sets_before_parts(tmp_path):
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(gzip.compress(lines(PROBLEM).encode()))
    assert [example.row for example in TASKS["human_eval"].load_examples(tmp_path)] == [PROBLEM]
    write_rows(tmp_path / "HumanEval.jsonl", [PROBLEM, {**PROBLEM, "task_id": "T/0"}])
    assert [example.id for example in TASKS["human_eval"].load_examples(tmp_path)] == ["T/0", "T/1"]
    for name in ("MATH_test_500", "MATH_test"):
        write_rows(tmp_path / f"{name}.jsonl", [{"instruction": name, "output": ""}])
        assert f"\n{name}\n" in TASKS["MATH"].load_examples(tmp_path)[0].prompt


def test_without_a_network_one_line_says_which_file_to_put_where(tmp_path):
    program = (
        "import time\n"
        "time.sleep = lambda seconds: None  # the hub's client waits between its attempts\n"
        "from inference_llms.tasks import TASKS\n"
        "from utils.errors import run_command_line\n"
        "raise SystemExit(run_command_line(lambda: TASKS['gsm8k'].load_examples(None)))\n"
    )
    # A proxy that does not exist: every attempt to reach the hub fails immediately.
    no_network = {"HTTPS_PROXY": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, **no_network}, capture_output=True, text=True
    )
    assert finished.returncode == 2
    assert (
        finished.stderr.count("\n") == 1
        and "put gsm8k_test.jsonl into a folder and name it with --data_dir" in finished.stderr
    )
