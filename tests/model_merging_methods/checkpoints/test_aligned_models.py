"""Checkpoints of other families than Llama, as transformers writes them, merge value by value and load again."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_merging_methods.merge_parameters import parameters_of
from tests.model_merging_methods.merges import AVERAGE, TASK_ARITHMETIC, merge, read_weights
from tests.model_merging_methods.small_models import WORDS, small_tokenizer

ROLES = ("math", "code")
COMMON = {"vocab_size": len(WORDS), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {
    **COMMON,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES = {
    "mistral": ("MistralConfig", SIZES),
    "qwen2": ("Qwen2Config", SIZES),
    "qwen2 with tied embeddings": ("Qwen2Config", {**SIZES, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", SIZES),
    "gemma": ("GemmaConfig", SIZES),
    "gemma2": ("Gemma2Config", SIZES),
    "gemma3": ("Gemma3TextConfig", SIZES),
    "phi": ("PhiConfig", {**SIZES, "num_key_value_heads": 2}),
    "phi3": ("Phi3Config", SIZES),
    "mixtral": ("MixtralConfig", {**SIZES, "num_local_experts": 4}),
    "qwen2 moe": (
        "Qwen2MoeConfig",
        {**SIZES, **EXPERTS, "shared_expert_intermediate_size": 16, "num_key_value_heads": 2},
    ),
    "qwen3 moe": ("Qwen3MoeConfig", {**SIZES, **EXPERTS}),
    "gpt2": ("GPT2Config", {**COMMON, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}),
    "mamba": (
        "MambaConfig",
        {**COMMON, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "conv_kernel": 2, "time_step_rank": 2},
    ),
    "gpt neox": (
        "GPTNeoXConfig",
        {**COMMON, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
    ),
}


def save(folder: Path, model, added: tuple[str, ...], pickled: bool) -> None:
    model.save_pretrained(folder, max_shard_size="4KB")
    small_tokenizer(added).save_pretrained(folder)
    if pickled:  # as older versions of transformers wrote them
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        for file in set(index["weight_map"].values()):
            torch.save(load_file(folder / file), folder / f"pytorch_{file}".replace(".safetensors", ".bin"))
            (folder / file).unlink()
        (folder / "model.safetensors.index.json").unlink()
        index["weight_map"] = {
            name: f"pytorch_{file}".replace(".safetensors", ".bin") for name, file in index["weight_map"].items()
        }
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def stored(folder: Path) -> dict[str, Tensor]:
    values = read_weights(folder)
    for file in sorted(folder.glob("*.bin")):
        values.update(torch.load(file))
    return values


def make(root: Path, family: str, added: tuple[str, ...] = (), pickled: bool = False) -> None:
    """A base and two fine-tunes in float16, the second with added tokens."""
    config_name, settings = FAMILIES[family]
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(getattr(transformers, config_name)(**settings)).half()
    save(root / "base", base, (), pickled)
    for role, own in (("math", ()), ("code", added)):
        model = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float32)
        if own:
            model.resize_token_embeddings(len(WORDS) + len(own), mean_resizing=False)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.002 * torch.randn_like(parameter)
        save(root / role, model.half(), own, pickled)


def with_row(tensor: Tensor, like: Tensor) -> Tensor:
    """A vocabulary matrix with the mean of its rows where it lacks one."""
    if tensor.shape == like.shape:
        return tensor
    mean = tensor.double().mean(dim=0, keepdim=True).float()
    return torch.cat([tensor, mean.expand(len(like) - len(tensor), *tensor.shape[1:])])


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_merges_value_by_value_and_loads_again(tmp_path, family, pickled):
    make(tmp_path, family, ("[PAD]",), pickled)
    merged = merge(tmp_path, tmp_path / "merged", TASK_ARITHMETIC, ROLES, largest_shard=6000)
    base, math, code = (
        {name: tensor.float() for name, tensor in stored(tmp_path / role).items()} for role in ("base", *ROLES)
    )
    assert merged.keys() == base.keys()
    for name, tensor in merged.items():
        start = with_row(base[name], code[name])
        expected = start + ((with_row(math[name], code[name]) - start) + (code[name] - start))
        assert torch.equal(tensor, expected.half()), name
    assert any(tensor.shape != base[name].shape for name, tensor in merged.items())

    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.get_input_embeddings().num_embeddings == len(WORDS) + 1
    tokens = AutoTokenizer.from_pretrained(tmp_path / "merged")("what is two [PAD]", return_tensors="pt")
    with torch.no_grad():
        assert model.float()(input_ids=tokens["input_ids"]).logits.isfinite().all()


@pytest.mark.parametrize("family", ["gemma3", "phi", "mixtral"])
def test_averages_and_ties_of_other_families(tmp_path, family):
    make(tmp_path, family)
    average = merge(tmp_path, tmp_path / "average", AVERAGE, ROLES, largest_shard=6000)
    math, code = (stored(tmp_path / role) for role in ROLES)
    assert all(torch.equal(t, ((math[n].float() + code[n].float()) / 2).half()) for n, t in average.items())
    merge(tmp_path, tmp_path / "ties", parameters_of("ties_merging"), ROLES, largest_shard=6000)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ties")
    assert all(parameter.isfinite().all() for parameter in model.parameters())
