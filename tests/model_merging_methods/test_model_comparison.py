"""What a merge tells about its models, and which models it will not merge unasked."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import save_model

from model_merging_methods.comparison import layer_group
from model_merging_methods.diagnose import main as diagnose
from model_merging_methods.merge_models import MergeWork, merge_models
from model_merging_methods.merge_record import read_record
from model_merging_methods.merge_request import Mask, MergeParameters, MergeRequest
from utils.errors import UserError

ROLES = ("instruct", "math", "code")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    base = save_model(root / "base", seed=0)
    for seed, role in enumerate(ROLES, start=1):
        save_model(root / role, seed, base=base)
    save_model(root / "stranger", seed=99)
    return root


def found(models: Path, target: Path, parameters: MergeParameters, roles=ROLES, **work) -> dict:
    request = MergeRequest(models / "base", {role: models / role for role in roles}, parameters)
    merge_models(request, {roles[0]: target}, work=MergeWork(**work))
    return read_record(target / "merge_record.json")["found"]["models"]


def whole(folder: Path, names=None) -> np.ndarray:
    tensors = load_file(folder / "model.safetensors")
    return np.concatenate([tensors[name].double().numpy().ravel() for name in names or sorted(tensors)])


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def test_figures_are_those_of_the_whole_models_and_of_every_layer(models, tmp_path):
    figures = found(models, tmp_path / "out", MergeParameters("ties_merging", mask=Mask(0.25)))
    names = sorted(load_file(models / "base" / "model.safetensors"))
    layer_1 = [name for name in names if ".layers.1." in name]
    assert set(figures["groups"]) == {"embeddings", "layer 0", "layer 1", "output", "other"}
    for group, own in ((figures["overall"], names), (figures["groups"]["layer 1"], layer_1)):
        base = whole(models / "base", own)
        deltas = {role: whole(models / role, own) - base for role in ROLES}
        assert group["values"] == len(base)
        for role, delta in deltas.items():
            of = group["models"][role]
            assert of["change"] == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(base), rel=1e-4)
            assert of["unchanged"] == pytest.approx(np.mean(delta == 0), rel=1e-5)
            assert of["kept_by_mask"] == pytest.approx(0.75, abs=4 * math.sqrt(0.1875 / len(base)))
        pair, x, y = group["pairs"]["instruct code"], deltas["instruct"], deltas["code"]
        assert pair["cosine"] == pytest.approx(cosine(x, y), abs=1e-5)
        assert pair["sign_conflicts"] == pytest.approx(np.mean(x * y < 0), rel=1e-5)
    kept = figures["overall"]["models"]["math"]["kept_by_trim"]
    assert 0.5 <= kept < 0.51


def test_plain_averaging_measures_the_models_against_each_other(models, tmp_path):
    figures = found(models, tmp_path / "out", MergeParameters("average_merging"))
    x, y = whole(models / "math"), whole(models / "code")
    pair = figures["overall"]["pairs"]["math code"]
    distance = np.linalg.norm(x - y) / math.sqrt(np.linalg.norm(x) * np.linalg.norm(y))
    assert pair["distance"] == pytest.approx(distance, rel=1e-4)
    assert pair["cosine"] == pytest.approx(cosine(x, y), rel=1e-5)
    assert pair["equal"] == pytest.approx(np.mean(x == y), rel=1e-5)
    assert figures["overall"]["models"]["math"] == {}


def test_figures_do_not_depend_on_threads_or_blocks(models, tmp_path):
    parameters = MergeParameters("ties_merging")
    reference = found(models, tmp_path / "reference", parameters, threads=1)
    assert found(models, tmp_path / "threads", parameters, threads=3) == reference
    blocks = found(models, tmp_path / "blocks", parameters, block_size=100)
    assert blocks["overall"]["pairs"]["math code"]["cosine"] == pytest.approx(
        reference["overall"]["pairs"]["math code"]["cosine"], rel=1e-3
    )


@pytest.mark.parametrize("method", ["average_merging", "task_arithmetic", "ties_merging"])
def test_a_model_of_another_backbone_stops_the_merge(models, tmp_path, method):
    for name in ("base", "math", "instruct"):
        shutil.copytree(models / name, tmp_path / "in" / name)
    shutil.copytree(models / "stranger", tmp_path / "in" / "code")
    config = json.loads((tmp_path / "in" / "code" / "config.json").read_text())
    (tmp_path / "in" / "code" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 32}))
    with pytest.raises(UserError, match=r"--code_model.*backbone.*max_position_embeddings 32.*--allow_unrelated") as e:
        found(tmp_path / "in", tmp_path / "out", MergeParameters(method))
    assert "\n" not in str(e.value) and "math_model" not in str(e.value)
    assert not any(tmp_path.glob("*out*"))
    found(tmp_path / "in", tmp_path / "out", MergeParameters(method), allow_unrelated=True)


def test_of_two_strangers_without_a_base_both_are_named(models, tmp_path):
    shutil.copytree(models / "math", tmp_path / "math")
    shutil.copytree(models / "stranger", tmp_path / "code")
    shutil.copytree(models / "base", tmp_path / "base")
    with pytest.raises(UserError, match=r"--math_model and --code_model: .* differ by 1\.\d+ times"):
        found(tmp_path, tmp_path / "out", MergeParameters("average_merging"), ("math", "code"))


def test_fine_tunes_of_a_real_backbone_pass(tmp_path):
    zoo = Path(__file__).parents[2] / "scripts" / "tiny_zoo"
    figures = found(zoo, tmp_path / "out", MergeParameters("task_arithmetic"))
    assert all(0.01 < of["change"] < 0.25 for of in figures["overall"]["models"].values())


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("model.embed_tokens.weight", "embeddings"),
        ("model.layers.11.mlp.up_proj.weight", "layer 11"),
        ("transformer.h.3.attn.c_attn.weight", "layer 3"),
        ("model.language_model.layers.2.input_layernorm.weight", "layer 2"),
        ("model.layers.5.block_sparse_moe.experts.7.w1.weight", "layer 5"),
        ("model.norm.weight", "other"),
        ("lm_head.weight", "output"),
        ("lm_head.bias", "output"),
    ],
)
def test_parameters_belong_to_their_layer(name, group):
    assert layer_group(name) == group


def test_diagnosis_of_models_with_a_table_a_file_and_a_picture(models, tmp_path, capsys):
    asked = ["--pretrained_model", models / "base", "--models", *(models / role for role in ROLES)]
    asked = [str(word) for word in (*asked, "--output_dir", tmp_path)]
    diagnose(asked)
    shown = capsys.readouterr().out
    assert "layer 1" in shown and "instruct + math" in shown
    folder = tmp_path / "save_model_diagnoses" / "instruct_math_code"
    assert (folder / "diagnosis.png").read_bytes().startswith(b"\x89PNG")
    merged = found(models, tmp_path / "merged", MergeParameters("task_arithmetic"))
    diagnosis = json.loads((folder / "diagnosis.json").read_text())
    assert {**diagnosis, "inputs": None} == {**merged, "inputs": None}
    with pytest.raises(UserError, match=r"earlier diagnosis.*--overwrite"):
        diagnose(asked)
    diagnose([*asked, "--overwrite"])


def test_diagnosis_tells_models_of_one_folder_name_apart_and_unchanged_ones(models, tmp_path):
    tensors = load_file(models / "base" / "model.safetensors")
    shutil.copytree(models / "base", tmp_path / "a" / "base")
    save_file({n: t + (0.01 if t.dtype == torch.float32 else 0) for n, t in tensors.items()},
              tmp_path / "a" / "base" / "model.safetensors")  # fmt: skip
    asked = ["--pretrained_model", models / "base", "--models", models / "base", tmp_path / "a" / "base"]
    diagnose([str(word) for word in (*asked, "--output_dir", tmp_path)])
    diagnosis = json.loads((tmp_path / "save_model_diagnoses" / "base_base.2" / "diagnosis.json").read_text())
    assert diagnosis["overall"]["models"]["base"] == {"change": 0.0, "unchanged": 1.0}
    assert diagnosis["overall"]["models"]["base.2"]["unchanged"] == 0


def test_a_wrong_diagnosis_gets_one_line(models, tmp_path):
    command = [sys.executable, "-m", "model_merging_methods.diagnose", "--pretrained_model", models / "base"]
    root = Path(__file__).parents[2]
    for models_given, told in (([models / "math"], "--models"), ([models / "math", tmp_path / "no"], "no such")):
        run = subprocess.run(
            [*command, "--models", *models_given], capture_output=True, text=True, cwd=root, check=False
        )
        assert run.returncode == 2 and told in run.stderr and run.stderr.count("\n") == 1
