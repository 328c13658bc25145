"""Data sets: what is found where, and one line for each thing that can be wrong with a file."""

import gzip
import json
import os
import re
import subprocess
import sys

import pytest

from inference_llms.data_sets import DataSet, load_rows
from inference_llms.tasks import MATH, alpaca_eval, gsm8k, human_eval, mbpp
from tests.inference_llms.support import ROOT, write_rows
from utils.errors import UserError

GOOD = {"question": "1+1?", "answer": "#### 2"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (json.dumps(GOOD) + "\n\n{broken\n", r"gsm8k_test\.jsonl line 3 is not JSON"),
        (json.dumps(GOOD) + "\n" + '{"question": "q"}\n', r"gsm8k_test\.jsonl line 2 lacks the field 'answer'"),
        ('{"question": 3, "answer": "#### 2"}\n', r"line 1: the field 'question' must be text"),
        ('{"question": "q", "answer": "two"}\n', r"line 1: the field 'answer' must end in"),
        (json.dumps({**GOOD, "question": "\ud800"}) + "\n", r"line 1 holds half a surrogate pair"),
        ("[" * 100_000 + "\n", r"line 1 is not JSON"),
        ("[1]\n", r"line 1 is not a JSON object"),
        ("", r"gsm8k_test\.jsonl holds no examples"),
        ("\n\n", r"gsm8k_test\.jsonl holds no examples"),
    ],
)
def test_a_bad_line_is_named_by_file_number_and_field(tmp_path, text, complaint):
    (tmp_path / "gsm8k_test.jsonl").write_text(text)
    with pytest.raises(UserError, match=complaint) as raised:
        gsm8k.load_examples(tmp_path)
    assert "\n" not in str(raised.value)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "gsm8k_test.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        gsm8k.load_examples(tmp_path)


def test_a_folder_of_the_files_name_is_named(tmp_path):
    (tmp_path / "gsm8k_test.jsonl").mkdir()
    with pytest.raises(UserError, match=r"gsm8k_test\.jsonl is a folder"):
        gsm8k.load_examples(tmp_path)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(UserError, match=r"--data_dir .*nowhere is not a folder"):
        gsm8k.load_examples(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[{},\n{broken", "line 2 is not JSON"),
        ("{}", "no JSON list"),
        ("[]", "no examples"),
        ("[" * 100_000, "too deep"),
        ("[{}]", "row 1 lacks"),
    ],
)
def test_a_broken_json_list_is_named(tmp_path, text, complaint):
    (tmp_path / "alpaca_eval.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(str(tmp_path)) + ".*" + complaint):
        alpaca_eval.load_examples(tmp_path)


def test_human_eval_is_read_packed_or_not_and_a_torn_file_is_named(tmp_path):
    row = {"task_id": "T/1", "prompt": "def f():\n", "entry_point": "f", "test": "def check(f): f()"}
    packed = gzip.compress(json.dumps(row).encode())
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(packed)
    assert [example.row for example in human_eval.load_examples(tmp_path)] == [row]
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(packed[:-12])
    with pytest.raises(UserError, match="not a whole gzip file"):
        human_eval.load_examples(tmp_path)
    write_rows(tmp_path / "HumanEval.jsonl", [row, {**row, "task_id": "T/0"}])
    assert [example.id for example in human_eval.load_examples(tmp_path)] == ["T/0", "T/1"]


def test_the_whole_math_set_goes_before_its_part(tmp_path):
    write_rows(tmp_path / "MATH_test_500.jsonl", [{"instruction": "part", "output": ""}])
    assert "part" in MATH.load_examples(tmp_path)[0].prompt
    write_rows(tmp_path / "MATH_test.jsonl", [{"instruction": "whole", "output": ""}])
    assert "whole" in MATH.load_examples(tmp_path)[0].prompt


def test_mbpp_is_sorted_by_number_and_a_task_that_stands_twice_is_named(tmp_path):
    row = {"text": "t", "test_list": ["assert f()"]}
    write_rows(tmp_path / "mbpp.test.jsonl", [{**row, "task_id": number} for number in (100, 9, 20)])
    assert [example.id for example in mbpp.load_examples(tmp_path)] == [9, 20, 100]
    write_rows(tmp_path / "mbpp.test.jsonl", [{**row, "task_id": number} for number in (9, 9)])
    with pytest.raises(UserError, match=r"line 2 has the task_id 9 of .*line 1"):
        mbpp.load_examples(tmp_path)
    write_rows(tmp_path / "mbpp.test.jsonl", [{"task_id": 1, "text": "t", "test_list": [3]}])
    with pytest.raises(UserError, match="line 1: the field 'test_list' must hold texts"):
        mbpp.load_examples(tmp_path)


def test_a_prompt_takes_braces_as_they_are(tmp_path):
    write_rows(tmp_path / "gsm8k_test.jsonl", [{"question": "{x} {} {question}", "answer": "#### 1"}])
    assert "{x} {} {question}" in gsm8k.load_examples(tmp_path)[0].prompt


def test_without_a_network_one_line_says_which_file_to_put_where(tmp_path):
    program = (
        "import time\n"
        "time.sleep = lambda seconds: None  # the hub's client waits between its attempts\n"
        "from inference_llms.tasks import gsm8k\n"
        "from utils.errors import run_command_line\n"
        "raise SystemExit(run_command_line(lambda: gsm8k.load_examples(None)))\n"
    )
    # A proxy that nobody listens at: every attempt to reach the hub fails at once.
    no_network = {"HTTPS_PROXY": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, **no_network}, capture_output=True, text=True
    )
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1 and "put gsm8k_test.jsonl into a folder" in finished.stderr


def test_a_set_that_cannot_be_downloaded_says_which_file_to_put_where():
    def no_network():
        raise ConnectionError("no route\nto host")

    data_set = DataSet(("some.jsonl",), {}, "someone/some-set", no_network)
    with pytest.raises(UserError, match=r"someone/some-set .*put some\.jsonl into a folder .* --data_dir") as raised:
        load_rows(data_set, None)
    assert "\n" not in str(raised.value)
