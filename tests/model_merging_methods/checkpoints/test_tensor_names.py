"""Names of tensors as in people's checkpoints: mapped, or explained in one line."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from model_merging_methods.merge_parameters import mask_of, parameters_of
from model_merging_methods.merge_record import read_record
from tests.model_merging_methods import merges
from tests.model_merging_methods.small_models import WORDS, Tensors, change_tensors, save_family, save_models
from utils.errors import UserError

ROLES = ("math", "code")
SIZES = {"vocab_size": len(WORDS), "bos_token_id": 1, "eos_token_id": 2}
GPT2 = transformers.GPT2Config(**SIZES, n_embd=16, n_layer=2, n_head=2, n_positions=32)
NEOX = transformers.GPTNeoXConfig(
    **SIZES, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
)


@pytest.fixture(scope="module")
def families(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("families")
    save_family(root / "gpt2", GPT2, ROLES)
    save_family(root / "neox", NEOX, ROLES)
    save_models(root / "llama", ROLES)
    return root


def renamed(how: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {how(name): tensor for name, tensor in tensors.items()}


def merge(root: Path, target: Path, *excluded: str) -> Tensors:
    parameters = parameters_of("ties_merging", mask=mask_of(weight_mask_rate=0.3), exclude_param_names_regex=excluded)
    return merges.merge(root, target, parameters, ROLES)


def causal_masks(prefix: str) -> Callable[[Tensors], Tensors]:
    """With the buffers in the hub's GPT-2 and Pythia files."""

    def add(tensors: Tensors) -> Tensors:
        for layer in range(2):
            tensors[f"{prefix.format(layer)}.bias"] = torch.ones(32, 32).tril().view(1, 1, 32, 32)
            tensors[f"{prefix.format(layer)}.masked_bias"] = torch.tensor(-1e9)
            tensors[f"{prefix.format(layer)}.rotary_emb.inv_freq"] = torch.rand(4)
        tensors["embeddings.position_ids"] = torch.arange(32)[None]
        return tensors

    return add


def without_transformer(tensors: Tensors) -> Tensors:
    return renamed(lambda name: name.removeprefix("transformer."))(tensors)


NAMES = {
    "torch.compile": ("llama", "math", renamed(lambda name: f"_orig_mod.{name}")),
    "torch.compile of each layer": ("llama", "code", renamed(lambda n: re.sub(r"(layers\.\d+\.)", r"\1_orig_mod.", n))),
    "DataParallel": ("llama", "math", renamed(lambda name: f"module.{name}")),
    "FSDP around PEFT": ("llama", "math", renamed(lambda n: f"_fsdp_wrapped_module.base_model.model.{n}")),
    "a fine-tune without a prefix": ("gpt2", "math", without_transformer),
    "a prefix too many": ("llama", "math", renamed(lambda name: f"language.{name}")),
    "masks in a fine-tune": ("neox", "code", causal_masks("gpt_neox.layers.{}.attention")),
}


@pytest.mark.parametrize(("family", "role", "change"), NAMES.values(), ids=NAMES)
def test_wrappers_prefixes_and_buffers_change_no_value(families, tmp_path, family, role, change):
    root = shutil.copytree(families / family, tmp_path / "models")
    expected = merge(root, tmp_path / "expected")
    change_tensors(root / role, change)
    found = merge(root, tmp_path / "found")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_merge_has_the_base_s_names_and_no_buffers(families, tmp_path):
    root = shutil.copytree(families / "gpt2", tmp_path / "models")
    expected = load_file(root / "base" / "model.safetensors").keys()
    change_tensors(root / "base", lambda tensors: causal_masks("h.{}.attn")(without_transformer(tensors)))
    assert merge(root, tmp_path / "merged").keys() == {name.removeprefix("transformer.") for name in expected}
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(report.values())


def next_token_layer(tensors: Tensors) -> Tensors:
    behind = {name.replace("layers.1.", "layers.2."): t + 1 for name, t in tensors.items() if "layers.1." in name}
    return {**tensors, **behind, "mtp.norm.weight": torch.ones(16)}


def test_layers_that_are_never_loaded_stay_as_the_base_has_them(families, tmp_path):
    root = shutil.copytree(families / "llama", tmp_path / "models")
    plain = merge(root, tmp_path / "plain")
    change_tensors(root / "base", next_token_layer)
    merged = merge(root, tmp_path / "merged")
    base = load_file(root / "base" / "model.safetensors")
    assert merged.keys() == base.keys()
    assert all(torch.equal(merged[name], plain.get(name, base[name])) for name in merged)
    warnings = read_record(tmp_path / "merged" / "merge_record.json")["found"]["warnings"]
    assert len(warnings) == 1 and "10 tensors" in warnings[0] and "never loads" in warnings[0]


def test_fine_tunes_may_lack_excluded_parameters(families, tmp_path):
    root = shutil.copytree(families / "llama", tmp_path / "models")
    change_tensors(
        root / "math", lambda tensors: {n: t for n, t in tensors.items() if "mlp" not in n and n != "lm_head.weight"}
    )
    merged, base = merge(root, tmp_path / "merged", "mlp", "lm_head"), load_file(root / "base" / "model.safetensors")
    assert all(
        torch.equal(merged[n], base[n]) == ("mlp" in n or n == "lm_head.weight") for n in base if "norm" not in n
    )


def fused(tensors: Tensors) -> Tensors:
    return renamed(lambda name: re.sub(r"mlp\.(gate|up|down)_proj\.weight", r"mlp.experts.\1_proj", name))(tensors)


def split(tensors: Tensors) -> Tensors:
    return renamed(lambda name: name.replace("mlp.", "mlp.experts.0."))(tensors)


def multimodal(prefix: str) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        names = renamed(lambda n: n.replace("model.", prefix, 1) if n.startswith("model.") else n)(tensors)
        return {**names, "vision_tower.layers.0.weight": torch.ones(3)}

    return change


def more(name: str, size: int = 16) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: torch.ones(size)}


def less(pattern: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: t for name, t in tensors.items() if not re.search(pattern, name)}


def same(tensors: Tensors) -> Tensors:
    return tensors


DIFFERENCES = {
    "experts": (split, fused, ["math: stores the experts of a layer fused", "unlike", "6 only in base", "experts.N"]),
    "vision tower": (same, multimodal("language_model.model."), ["math: is a multimodal checkpoint", "one kind"]),
    "two generations": (
        multimodal("language_model.model."),
        multimodal("model.language_model."),
        ["names are of another version of transformers", "the same version"],
    ),
    "tower dropped": (
        multimodal("model.language_model."),
        lambda tensors: less("vision")(multimodal("model.language_model.")(tensors)),
        ["base: has vision_tower", "--exclude_param_names_regex vision_tower"],
    ),
    "backbone alone": (same, less("lm_head"), ["math: stores no output head (lm_head.weight)"]),
    "classifier": (same, more("score.weight"), ["math: has a head for classification"]),
    "value head": (same, more("v_head.summary.weight"), ["math: has the value head"]),
    "unmerged LoRA": (
        same,
        more("model.layers.0.mlp.up_proj.lora_A.default.weight"),
        ["LoRA matrices that were not merged", "merge_and_unload()"],
    ),
    "layers": (same, less(r"layers\.1\."), ["math: has 1 layers, but", "has 2", "9 only in base"]),
    "biases": (same, more("model.layers.0.self_attn.q_proj.bias"), ["1 only in math", "q_proj.bias"]),
    "nothing alike": (same, renamed(lambda n: n.replace(".", "_")), ["shares no tensor name", "one pretrained model"]),
    "Meta's names": (
        same,
        renamed(lambda n: re.sub(r"model\.(layers.*)self_attn.q_proj", r"\1attention.wq", n)),
        ["original names of another program"],
    ),
    "doubled": (
        same,
        lambda tensors: {**tensors, "module.model.norm.weight": torch.ones(16)},
        ["math: holds", "twice"],
    ),
}


@pytest.mark.parametrize(("of_base", "of_math", "message"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_other_differences_of_names_are_explained_in_one_line(families, tmp_path, of_base, of_math, message):
    root = shutil.copytree(families / "llama", tmp_path / "models")
    for role, change in (("base", of_base), ("math", of_math), ("code", of_base)):
        change_tensors(root / role, change)
    with pytest.raises(UserError) as refused:
        merge(root, tmp_path / "merged")
    for part in message:
        assert part in str(refused.value)
    assert "\n" not in str(refused.value) and not (tmp_path / "merged").exists()
