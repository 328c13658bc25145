"""Configs of a merge's models: compared by meaning, reported, and assembled."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from merge_llms_instruct_math_code import main
from model_merging_methods.checkpoints.checkpoint_folder import CheckpointFolder
from model_merging_methods.checkpoints.configs import check_configs, merged_config
from model_merging_methods.merge_parameters import parameters_of
from tests.model_merging_methods.merges import PAIR, merge
from tests.model_merging_methods.small_models import change_json, save_models
from utils.errors import UserError
from utils.findings import Findings

FOLDERS = {"pretrained": "base", "instruct": "instruct", "math": "math"}
ROPE = {"rope_type": "default", "rope_theta": 1e6}
LEFT_OUT = object()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save_models(tmp_path_factory.mktemp("saved"), PAIR)


@pytest.fixture
def models(saved, tmp_path) -> Path:
    return shutil.copytree(saved, tmp_path / "models")


def edit(path: Path, changes: dict) -> None:
    removed = [key for key, value in changes.items() if value is LEFT_OUT]
    change_json(path, *removed, **{key: value for key, value in changes.items() if value is not LEFT_OUT})


# Changes of instruct's config and of math's; the findings, and settings of the merged config (None: an error).
DIFFERENCES = {
    "none": ({}, {}, [], {}),
    "defaults left out": ({"head_dim": LEFT_OUT, "mlp_bias": LEFT_OUT}, {"attention_bias": LEFT_OUT}, [], {}),
    "rope in the old spelling": ({"rope_parameters": LEFT_OUT, "rope_theta": 1e4, "rope_scaling": None}, {}, [], {}),
    "settings of training": ({"use_cache": False, "attention_dropout": 0.1, "_name_or_path": "x"}, {}, [], {}),
    "no architectures": ({"architectures": LEFT_OUT}, {"architectures": None}, [], {}),
    "another label": ({"architectures": ["LLaMAForCausalLM"]}, {}, ["architectures is"], {}),
    "rope of both": (
        {"rope_parameters": ROPE},
        {"rope_parameters": ROPE},
        ["has .*1000000"],
        {"rope_parameters": ROPE},
    ),
    "rope of both in the old spelling": (
        *[{"rope_parameters": LEFT_OUT, "rope_theta": 1e6}] * 2,
        ["rope_parameters"],
        {"rope_theta": 1e6},
    ),
    "rope of one": ({"rope_parameters": ROPE}, {}, ["--config_from"], {"rope_parameters": {**ROPE, "rope_theta": 1e4}}),
    "norm and context": (
        {"rms_norm_eps": 1e-5, "max_position_embeddings": 128},
        {"rms_norm_eps": 1e-5},
        ["max_position_embeddings is 128 in instruct", "rms_norm_eps is 1e-05 in instruct and math"],
        {"rms_norm_eps": 1e-5, "max_position_embeddings": 64},
    ),
    "activation": ({}, {"hidden_act": "gelu"}, ["hidden_act is gelu in math.*--allow_unrelated"], None),
    "heads": ({"num_attention_heads": 4, "head_dim": 4}, {}, ["num_attention_heads is 4", "head_dim is 4"], None),
    "a label of the same meaning": ({}, {"model_type": "mistral", "sliding_window": None}, ["model_type is"], {}),
    "a label with another attention": ({}, {"model_type": "mistral"}, ["sliding_window is 4096", "model_type is"], {}),
}


@pytest.mark.parametrize("kind", DIFFERENCES)
def test_configs_are_compared_by_meaning(models, kind):
    *changes, message, merged = DIFFERENCES[kind]
    for role, changed in zip(PAIR, changes, strict=True):
        edit(models / role / "config.json", changed)
    opened = {role: CheckpointFolder(models / folder) for role, folder in FOLDERS.items()}
    findings = Findings()
    check_configs(opened, None, False, findings)
    assert bool(findings.errors) == (merged is None)
    assert len(findings.found) >= len(message) and bool(findings.found) == bool(message)
    for pattern in message:
        assert any(re.search(pattern, finding.text) for finding in findings.found), findings.found
    written = merged_config(opened, None)
    assert merged is None or {key: written[key] for key in merged} == merged
    assert not {"rope_parameters", "rope_theta"} <= written.keys()


def test_settings_of_models_that_transformers_does_not_know_are_compared(models):
    for role in ("base", *PAIR):
        edit(models / role / "config.json", {"model_type": "mine"})
    edit(models / "math" / "config.json", {"rms_norm_eps": 1e-5})
    findings = Findings()
    opened = {role: CheckpointFolder(models / folder) for role, folder in FOLDERS.items()}
    check_configs(opened, None, False, findings)
    assert [finding.text[:29] for finding in findings.found] == ["config.json: rms_norm_eps is "]


def merged(models: Path, config_from: str | None = None, instruct: str = "instruct") -> Path:
    parameters = parameters_of("average_merging", config_from=config_from)
    merge(models, models / "merged", parameters, {"instruct": instruct, "math": "math"})
    return models / "merged"


def test_a_fine_tune_merged_with_itself_computes_its_own_logits(models):
    edit(models / "math" / "config.json", {"rope_parameters": ROPE, "rms_norm_eps": 1e-3})
    folders = (models / "math", merged(models, instruct="math"))
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        own, written = (AutoModelForCausalLM.from_pretrained(folder)(tokens).logits for folder in folders)
    assert torch.equal(own, written)


@pytest.mark.parametrize(("config_from", "stops"), [(None, [2, 5]), ("instruct", 3), ("pretrained", 2)])
def test_a_folder_has_its_role_s_stop_tokens(models, config_from, stops):
    for role, tokens in (("instruct", 3), ("math", [2, 5])):
        for name in ("config.json", "generation_config.json"):
            change_json(models / role / name, eos_token_id=tokens)
    folder = merged(models, config_from)
    assert AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id == stops
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == stops


def test_config_from_takes_all_settings_of_that_model(models):
    change_json(models / "math" / "config.json", rms_norm_eps=1e-3)
    assert AutoModelForCausalLM.from_pretrained(merged(models, "math")).config.rms_norm_eps == 1e-3
    shutil.rmtree(models / "merged")
    (models / "math" / "config.json").write_text("{,")
    with pytest.raises(UserError, match=r"math/config\.json is not JSON"):
        merged(models, "math")


GENERATION_CONFIGS = {
    "of sampling without sampling": ('{"eos_token_id": 5, "do_sample": false, "temperature": 0.5}', 5),
    "that transformers refuses": ('{"eos_token_id": 5, "num_return_sequences": 3}', 5),
    "that is not JSON": ("{,", 2),
    "that is a list": ("[5]", 2),
}


@pytest.mark.parametrize("kind", GENERATION_CONFIGS)
def test_an_invalid_generation_config_never_stops_a_merge(models, kind):
    content, stop = GENERATION_CONFIGS[kind]
    (models / "math" / "generation_config.json").write_text(content)
    assert AutoModelForCausalLM.from_pretrained(merged(models)).generation_config.eos_token_id == stop


def test_a_byte_order_mark_and_a_wrong_vocab_size_are_accepted(models):
    path = models / "base" / "config.json"
    change_json(path, vocab_size=99)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    folder = merged(models)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert "vocab_size is 99 in pretrained, whose matrices have 12 rows" in (folder / "README.md").read_text()
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == 12


def test_code_is_reported_and_copied_and_never_run(models, tmp_path):
    for role in ("base", *PAIR):
        change_json(models / role / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.MineConfig"})
        (models / role / "mine.py").write_text("raise SystemExit('code of a checkpoint was run')")
    folder = merged(models)
    assert (folder / "mine.py").exists() and "names code (mine.py)" in (folder / "README.md").read_text()

    (tmp_path / "gsm8k_test.jsonl").write_text('{"question": "what is 1 and 2?", "answer": "#### 3"}\n')
    words = ["--merge_instruct", "--merge_math", "--tasks", "gsm8k", "--data_dir", tmp_path, "--output_dir", tmp_path]
    for role, name in FOLDERS.items():
        words += [f"--{role}_model", models / name]
    with pytest.raises(UserError, match=r"own code \(mine.py, in auto_map\).*--merge_only"):
        main(list(map(str, words)))
    assert not (tmp_path / "save_merge_models").exists()
