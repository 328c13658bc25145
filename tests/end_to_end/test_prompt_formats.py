"""Chats in the main job, a search and an attack, on tiny models with a chat template."""

import csv
import functools
import json
import shutil
import sqlite3

import pytest

import merge_llms_instruct_math_code as main_job
from promptbench import run_attacks, sst2
from scripts import search_mixup
from tests.commands import run_here
from tests.inference_llms.support import ZOO, read_json_lines

TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}"
CHAT = ("--prompt_format", "chat", "--system_prompt", "be brief")
FORM = {"name": "chat", "system_prompt": "be brief", "thinking": None}
MERGE = ("--merge_instruct", "--merge_math", "--merging_method_name", "average_merging", "--backend", "transformers")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    for name in ("base", "instruct", "math", "classify"):
        shutil.copytree(ZOO / name, folder / name)
        (folder / name / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def models(zoo):
    folders = {"pretrained": "base", "instruct": "instruct", "math": "math"}
    return [*MERGE, *(word for role, name in folders.items() for word in (f"--{role}_model", zoo / name))]


def test_a_merge_answers_chats(zoo, tmp_path):
    part = ("--tasks", "gsm8k", "--data_dir", ZOO / "data", "--end_index", 3, "--max_tokens", 6)
    done = run_here(main_job.main, [*models(zoo), *part, *CHAT, "--output_dir", tmp_path])
    assert done.returncode == 0, done.stderr
    (scores,) = tmp_path.glob("save_scores/instruct_math/*.json")
    assert json.loads(scores.read_text())["gsm8k"]["identity"]["prompt_format"] == FORM


def test_a_model_without_a_template_is_refused_before_the_merge(zoo, tmp_path):
    done = run_here(
        main_job.main,
        [*models(zoo), "--math_model", ZOO / "math", "--tasks", "gsm8k", "--data_dir", ZOO / "data", *CHAT,
         "--output_dir", tmp_path],
    )  # fmt: skip
    assert done.returncode == 2 and "math: its tokenizer has no chat template" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_search_in_chats_is_another_search(zoo, tmp_path):
    part = ("--tasks", "gsm8k", "--data_dir", ZOO / "data", "--num_validation", 2, "--num_test", 2, "--num_draws", 1)
    words = [*models(zoo), *part, "--max_tokens", 6, "--results", tmp_path / "a.sqlite", "--output_dir", tmp_path]
    done = run_here(search_mixup.main, [*words, *CHAT])
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(tmp_path / "a.sqlite") as stored:
        [[identity]] = stored.execute("SELECT identity FROM search")
        tokens = [number for (number,) in stored.execute("SELECT tokens FROM answers")]
    assert "Prompts: chat (system prompt 'be brief')." in json.loads(identity)["split"]
    assert json.loads(identity)["prompt_format"] == FORM and all(0 < number <= 6 for number in tokens)
    other = run_here(search_mixup.main, words)
    assert other.returncode == 2 and "prompt_format" in other.stderr
    assert run_here(search_mixup.main, [*words, *CHAT, "--export", tmp_path / "a.csv"]).returncode == 0
    with open(tmp_path / "a.csv", newline="") as exported:
        assert {row["prompts"] for row in csv.DictReader(exported)} == {"chat (system prompt 'be brief')"}


def test_attacks_are_on_the_chats_question(zoo, tmp_path):
    attack = functools.partial(run_attacks.main, sst2.TASK)
    words = [
        "--model_path",
        zoo / "classify",
        "--data_dir",
        ZOO / "data",
        "--output_dir",
        tmp_path,
        "--num_samples",
        20,
    ]
    words += ["--attack_method", "stresstest", "--query_budget", 3, "--backend", "transformers", "--max_tokens", 4]
    done = run_here(attack, [*words, *CHAT])
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr
    (rows,) = tmp_path.rglob("*.jsonl")
    assert all(0 < row["tokens"] <= 4 for row in read_json_lines(rows))
    identity = json.loads(rows.with_name(f"{rows.stem}.identity.json").read_text())
    assert identity["prompt_format"] == FORM and identity["sampling"]["stop"] == []
