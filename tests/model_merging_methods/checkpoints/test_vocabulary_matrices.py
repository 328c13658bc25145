"""Tied and untied output heads: recognised by their values, merged once, and never dropped."""

import json
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, T5Config

from model_merging_methods.merge_parameters import MergeParameters, mask_of, parameters_of
from model_merging_methods.merge_record import read_record
from tests.model_merging_methods import merges
from tests.model_merging_methods.small_models import (
    WORDS,
    Tensors,
    change_json,
    change_tensors,
    save_family,
    save_models,
)
from utils.errors import UserError

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ROLES = ("math", "code")
METHODS = {
    "average": parameters_of("average_merging"),
    "DARE TIES": parameters_of("ties_merging", mask=mask_of(weight_mask_rate=0.3, use_weight_rescale=True)),
    "magnitude": parameters_of("average_merging", mask=mask_of("magnitude", weight_mask_rate=0.3)),
}


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> Path:
    """A base with tied embeddings and two fine-tunes, each stored as transformers does: one matrix, one name."""
    return save_models(tmp_path_factory.mktemp("tied"), ROLES, tied=True)


@pytest.fixture(scope="module")
def plain_merge(tied, tmp_path_factory) -> Callable[[str], Path]:
    """The folder of the plain models' merge by a method."""

    @lru_cache
    def plain(method: str) -> Path:
        target = tmp_path_factory.mktemp("plain") / "merged"
        merge(tied, target, METHODS[method])
        return target

    return plain


def both_names(tensors: Tensors) -> Tensors:
    return {**tensors, HEAD: tensors[EMBED]}


def head_only(tensors: Tensors) -> Tensors:
    return {HEAD if name == EMBED else name: tensor for name, tensor in tensors.items()}


def own_head(tensors: Tensors) -> Tensors:
    torch.manual_seed(7)
    return {**tensors, HEAD: tensors[EMBED] + 0.01 * torch.randn_like(tensors[EMBED])}


def merge(root: Path, target: Path, parameters: MergeParameters) -> Tensors:
    return merges.merge(root, target, parameters, ROLES, "math")


STORED = {
    "the base under both names": ({"base": both_names}, {EMBED, HEAD}),
    "all under both names": (dict.fromkeys(("base", *ROLES), both_names), {EMBED, HEAD}),
    "a fine-tune under both names": ({"math": both_names}, {EMBED}),
    "a fine-tune under the head's name": ({"code": head_only}, {EMBED}),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("changes", "names"), STORED.values(), ids=STORED)
def test_one_matrix_merges_to_the_same_values_under_any_name(tied, tmp_path, plain_merge, changes, names, method):
    root = shutil.copytree(tied, tmp_path / "models")
    expected = load_file(plain_merge(method) / "model.safetensors")
    for role, change in changes.items():
        change_tensors(root / role, change)
    found = merge(root, tmp_path / "found", METHODS[method])
    assert found.keys() & {EMBED, HEAD} == names
    assert all(torch.equal(found[name], expected[EMBED if name == HEAD else name]) for name in found)
    folders = (plain_merge(method), tmp_path / "found")
    counts = [read_record(folder / "merge_record.json")["found"] for folder in folders]
    assert counts[0]["number_of_parameters"] == counts[1]["number_of_parameters"]
    assert counts[0].get("trim_thresholds") == counts[1].get("trim_thresholds")


def test_a_base_that_stores_the_head_s_name_alone_merges(tied, tmp_path, plain_merge):
    root = shutil.copytree(tied, tmp_path / "models")
    change_tensors(root / "base", head_only)
    expected = load_file(plain_merge("average") / "model.safetensors")[EMBED]
    assert torch.equal(merge(root, tmp_path / "found", METHODS["average"])[HEAD], expected)


@pytest.mark.parametrize("says_tied", [True, False])
@pytest.mark.parametrize("parameters", METHODS.values(), ids=METHODS)
def test_a_fine_tune_s_own_head_is_kept_and_the_merge_untied(tied, tmp_path, parameters, says_tied):
    """The same as if all three models had stored their head as a second matrix."""
    root = shutil.copytree(tied, tmp_path / "models")
    change_tensors(root / "math", own_head)
    change_json(root / "math" / "config.json", tie_word_embeddings=says_tied)
    found = merge(root, tmp_path / "found", parameters)

    for role in ("base", "code"):
        change_tensors(root / role, both_names)
    for role in ("base", *ROLES):
        change_json(root / role / "config.json", tie_word_embeddings=False)
    expected = merge(root, tmp_path / "expected", parameters)
    assert found.keys() == expected.keys() and HEAD in found
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "found")
    assert torch.equal(model.lm_head.weight, found[HEAD]) and torch.equal(model.model.embed_tokens.weight, found[EMBED])
    assert json.loads((tmp_path / "found" / "config.json").read_text())["tie_word_embeddings"] is False
    warnings = read_record(tmp_path / "found" / "merge_record.json")["found"]["warnings"]
    assert any("math: its output head is a separate matrix" in warning for warning in warnings)
    assert "separate matrix" in (tmp_path / "found" / "README.md").read_text()


def test_a_base_s_own_head_counts_whatever_its_config_says(tied, tmp_path):
    root = shutil.copytree(tied, tmp_path / "models")
    for role in ("base", *ROLES):
        change_tensors(root / role, own_head)
    heads = [load_file(root / role / "model.safetensors")[HEAD] for role in ROLES]
    merged = merge(root, tmp_path / "merged", METHODS["average"])
    assert torch.equal(merged[HEAD], (heads[0] + heads[1]) / 2)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "merged").lm_head.weight, merged[HEAD])


@pytest.mark.parametrize("ties", [False, None], ids=["false", "left out"])
def test_a_fine_tune_without_the_base_s_own_head_is_refused(tied, tmp_path, ties):
    root = shutil.copytree(tied, tmp_path / "models")
    for role in ("base", "code"):
        change_tensors(root / role, own_head)
    change_json(root / "math" / "config.json", tie_word_embeddings=ties)
    with pytest.raises(UserError, match=r"math: stores no output head \(lm_head\.weight\)"):
        merge(root, tmp_path / "merged", METHODS["average"])


def test_excluding_one_name_of_a_matrix_leaves_the_matrix_alone(tied, tmp_path):
    root = shutil.copytree(tied, tmp_path / "models")
    change_tensors(root / "base", both_names)
    base = load_file(root / "base" / "model.safetensors")
    merged = merge(root, tmp_path / "merged", parameters_of("ties_merging", exclude_param_names_regex=("lm_head",)))
    assert torch.equal(merged[HEAD], base[HEAD]) and torch.equal(merged[EMBED], base[EMBED])


def test_the_four_names_of_t5_s_matrix_are_one(tmp_path):
    config = T5Config(vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    save_family(tmp_path, config, ROLES, AutoModelForSeq2SeqLM)
    expected = merge(tmp_path, tmp_path / "expected", METHODS["DARE TIES"])
    aliases = {f"{part}.embed_tokens.weight": "shared.weight" for part in ("encoder", "decoder")}
    for role in ("base", "code"):
        change_tensors(
            tmp_path / role, lambda tensors: {**tensors, **{new: tensors[old] for new, old in aliases.items()}}
        )
        found = merge(tmp_path, tmp_path / f"found_{role}", METHODS["DARE TIES"])
        assert found.keys() == load_file(tmp_path / "base" / "model.safetensors").keys()
        assert all(torch.equal(found[name], expected[aliases.get(name, name)]) for name in found)
