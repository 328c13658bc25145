"""Adapters that PEFT wrote, applied as PEFT's own merge_and_unload applies them, or refused in one line."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from small_models import save_model, small_config
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from model_merging_methods.checkpoints.lora_adapter import (
    HARMLESS_SETTINGS,
    READ_SETTINGS,
    LoraAdapter,
    LowRank,
    add_low_rank,
)
from utils.errors import UserError
from utils.safetensors_files import read_header
from utils.weight_files import is_adapter_folder

pytestmark = pytest.mark.filterwarnings("ignore")

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
QUERY = "model.layers.0.self_attn.q_proj"
ROWS = 12  # of the small models' vocabulary
ATTENTION = ["q_proj", "v_proj"]

# Every setting of LoraConfig that is refused, with a value that puts it to use.
REFUSED_SETTINGS = {
    "use_dora": True,
    "trainable_token_indices": [1, 2],
    "layer_replication": [[0, 2], [0, 2]],
    "target_parameters": ["mlp.experts.down_proj"],
    "lora_bias": True,
    "use_qalora": True,
    "alora_invocation_tokens": [3],
    "megatron_config": {"hidden_size": 16},
    "velora_config": {"num_groups": 2},
    "monteclora_config": {"num_samples": 2},
    "use_bdlora": {"nblocks": 2},
    "arrow_config": {"top_k": 1},
    "kasa_config": {"beta": 1e-4},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "base", seed=0)


@pytest.fixture(scope="module")
def tied_base(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tied", seed=0, tied=True)


def save_adapter(base: Path, folder: Path, rows: int = ROWS, pickled: bool = False, dtype=None, **config) -> Path:
    """An adapter as after some training, of a model that has grown to so many rows."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if model.config.vocab_size != rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    adapted = get_peft_model(model, LoraConfig(**{"target_modules": ATTENTION, "r": 4, "lora_alpha": 6, **config}))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad or "lora_" in name:
                parameter += 0.05 * torch.randn_like(parameter)
    adapted.to(dtype or torch.float32).save_pretrained(folder, safe_serialization=not pickled)
    return folder


def stored_tensors(base: Path) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in load_file(base / "model.safetensors").items()}


def open_adapter(folder: Path, base: Path) -> LoraAdapter:
    return LoraAdapter(folder, {name: tensor.shape for name, tensor in read_header(base / "model.safetensors").items()})


def apply(adapter: LoraAdapter, base: Path) -> dict[str, np.ndarray]:
    applied = {}
    for name, tensor in stored_tensors(base).items():
        values, shape = tensor.astype(np.float32).reshape(-1), tensor.shape
        if name in adapter.replaced:
            shape = adapter.replaced[name].shape
            values = adapter.read_replaced(name, 0, int(np.prod(shape)))
        if name in adapter.low_rank:
            add_low_rank(values, adapter.low_rank[name], 0)
        applied[name] = values.reshape(shape)
    return applied


def assert_merged_as_by_peft(folder: Path, base: Path, rows: int = ROWS) -> LoraAdapter:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if model.config.vocab_size != rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    expected = PeftModel.from_pretrained(model, folder).merge_and_unload().state_dict()
    adapter = open_adapter(folder, base)
    applied = apply(adapter, base)
    assert adapter.low_rank.keys() | adapter.replaced.keys() <= applied.keys()
    for name, values in applied.items():
        np.testing.assert_allclose(values, expected[name].numpy(), rtol=0, atol=1e-6, err_msg=name)
    return adapter


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"lora_alpha": 8, "use_rslora": True, "target_modules": "all-linear"},
        {
            "rank_pattern": {"q_proj": 3, "layers.1.self_attn.v_proj": 5},
            "alpha_pattern": {r"layers\.0\..*": 7, "proj": 9, "v_proj": 11},
        },
        {"use_rslora": True, "rank_pattern": {"^model.layers.0.self_attn.q_proj": 2}},
        {"target_modules": ["embed_tokens", "lm_head", "down_proj"]},
        {"modules_to_save": ["lm_head", "norm"]},
        {"modules_to_save": ["embed_tokens", "lm_head"], "layers_to_transform": [1]},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.1},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "mica"},
        {"init_lora_weights": False},
    ],
    ids=lambda config: "-".join(config) or "plain",
)
def test_an_adapter_gives_what_peft_merges(base, tmp_path, config):
    adapter = assert_merged_as_by_peft(save_adapter(base, tmp_path / "adapter", **config), base)
    changes = [change.up @ change.down for change in adapter.low_rank.values()]
    assert changes and all(np.abs(change).max() > 1e-3 for change in changes)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_take_the_place_of_the_pretrained_ones(tmp_path, bias):
    torch.manual_seed(0)
    config = small_config(ROWS)
    config.attention_bias = config.mlp_bias = True
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    folder = save_adapter(tmp_path / "base", tmp_path / "adapter", bias=bias, lora_alpha=8)
    adapter = assert_merged_as_by_peft(folder, tmp_path / "base")
    assert f"{QUERY}.bias" in adapter.replaced
    assert ("model.layers.0.mlp.up_proj.bias" in adapter.replaced) == (bias == "all")


def save_gpt2(folder: Path) -> Path:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=ROWS, n_embd=16, n_layer=1, n_head=2, tie_word_embeddings=False)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("targets", [["c_attn"], ["c_proj"], ["c_attn", "c_proj", "lm_head"], ["wte", "c_fc"]])
def test_matrices_that_are_stored_transposed_are_found_by_themselves(tmp_path, targets):
    base = save_gpt2(tmp_path / "base")
    # With lm_head, PEFT leaves fan_in_fan_out false in the config; attn.c_proj is square, and transposed all the same.
    folder = save_adapter(base, tmp_path / "adapter", target_modules=targets, fan_in_fan_out=True)
    assert json.loads((folder / CONFIG).read_text())["fan_in_fan_out"] == ("lm_head" not in targets)
    assert_merged_as_by_peft(folder, base)


def test_an_adapter_fits_a_base_saved_without_its_body_s_name(tmp_path):
    base = save_gpt2(tmp_path / "base")
    patterns = {"alpha_pattern": {"transformer.h.0.attn.c_attn": 5}}
    folder = save_adapter(
        base, tmp_path / "adapter", target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, **patterns
    )
    expected = apply(open_adapter(folder, base), base)
    stored = load_file(base / "model.safetensors")
    save_file({n.removeprefix("transformer."): t for n, t in stored.items()}, base / "model.safetensors")
    found = apply(open_adapter(folder, base), base)
    assert all(np.array_equal(found[n.removeprefix("transformer.")], values) for n, values in expected.items())


def test_biases_that_are_saved_twice_with_one_value_are_one(tmp_path):
    base = save_gpt2(tmp_path / "base")
    folder = save_adapter(base, tmp_path / "adapter", target_modules=["c_attn"], bias="all", modules_to_save=["ln_f"])
    assert "base_model.model.transformer.ln_f.modules_to_save.bias" in load_file(folder / WEIGHTS)
    assert_merged_as_by_peft(folder, base)


def test_an_adapter_of_a_mixture_of_experts_attention(tmp_path):
    torch.manual_seed(0)
    sizes = small_config(ROWS).to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = MixtralConfig(
        **{name: sizes[name] for name in names}, num_key_value_heads=2, num_local_experts=2, bos_token_id=1
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path / "base")
    folder = save_adapter(tmp_path / "base", tmp_path / "adapter")
    adapter = open_adapter(folder, tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    expected = PeftModel.from_pretrained(model, folder).merge_and_unload().state_dict()
    applied = apply(adapter, tmp_path / "base")
    assert len(adapter.low_rank) == 4
    for name in adapter.low_rank:
        np.testing.assert_allclose(applied[name], expected[name].numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_adapter_in_half_precision_is_read_exactly(base, tmp_path, dtype):
    folder = save_adapter(base, tmp_path / "adapter", dtype=dtype, modules_to_save=["lm_head"])
    assert {tensor.dtype for tensor in load_file(folder / WEIGHTS).values()} == {dtype}
    adapter = assert_merged_as_by_peft(folder, base)
    stored = load_file(folder / WEIGHTS)[f"base_model.model.{QUERY}.lora_A.weight"]
    assert np.array_equal(adapter.low_rank[f"{QUERY}.weight"].down, stored.float().numpy())


def test_pickled_adapters_give_the_same_bits(base, tmp_path):
    pickled = save_adapter(base, tmp_path / "pickled", pickled=True, modules_to_save=["lm_head"])
    assert (pickled / "adapter_model.bin").exists() and not (pickled / WEIGHTS).exists()
    assert_merged_as_by_peft(pickled, base)
    plain = apply(open_adapter(save_adapter(base, tmp_path / "plain", modules_to_save=["lm_head"]), base), base)
    assert all(np.array_equal(values, plain[name]) for name, values in apply(open_adapter(pickled, base), base).items())


def test_names_as_older_versions_wrote_them_mean_the_same(base, tmp_path):
    folder = save_adapter(
        base, tmp_path / "adapter", target_modules=[*ATTENTION, "embed_tokens"], modules_to_save=["norm"]
    )
    expected = apply(open_adapter(folder, base), base)

    def older(name: str) -> str:
        if name.endswith(".norm.weight"):
            return name.replace(".weight", ".modules_to_save.default.weight")
        if "lora_embedding" in name:
            return f"{name}.default"
        return name.replace(".weight", ".default.weight") if "lora_" in name else name

    stored = {older(name): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    stored["base_model.model.model.norm.original_module.weight"] = torch.zeros(16)
    assert sum(".default" in name for name in stored) == 11
    save_file(stored, folder / WEIGHTS)
    applied = apply(open_adapter(folder, base), base)
    assert all(np.array_equal(values, expected[name]) for name, values in applied.items())


@pytest.mark.parametrize("targets", [ATTENTION, [*ATTENTION, "embed_tokens", "lm_head"]])
def test_a_grown_vocabulary_comes_with_the_adapter(base, tmp_path, targets):
    folder = save_adapter(base, tmp_path / "adapter", rows=ROWS + 3, target_modules=targets)
    adapter = assert_merged_as_by_peft(folder, base, rows=ROWS + 3)
    assert {name: stored.shape for name, stored in adapter.replaced.items()} == {
        "model.embed_tokens.weight": (ROWS + 3, 16),
        "lm_head.weight": (ROWS + 3, 16),
    }
    assert len(adapter.low_rank) == 4 + 2 * ("lm_head" in targets)


def test_a_grown_vocabulary_of_tied_embeddings_is_one_matrix(tied_base, tmp_path):
    folder = save_adapter(tied_base, tmp_path / "adapter", rows=ROWS + 3)
    assert "base_model.model.lm_head.weight" in load_file(folder / WEIGHTS)
    adapter = assert_merged_as_by_peft(folder, tied_base, rows=ROWS + 3)
    assert list(adapter.replaced) == ["model.embed_tokens.weight"]


def test_a_replaced_tensor_is_read_by_stretches(base, tmp_path):
    folder = save_adapter(base, tmp_path / "adapter", modules_to_save=["lm_head"], dtype=torch.bfloat16)
    adapter = open_adapter(folder, base)
    whole = adapter.read_replaced("lm_head.weight", 0, ROWS * 16)
    assert np.array_equal(adapter.read_replaced("lm_head.weight", 37, 120), whole[37:120])
    assert whole.dtype == np.float32


def test_the_files_that_matter_are_listed(base, tmp_path):
    folder = save_adapter(base, tmp_path / "adapter")
    assert open_adapter(folder, base).files == [folder / CONFIG, folder / WEIGHTS]
    assert is_adapter_folder(folder)
    assert not is_adapter_folder(base)


def test_a_safetensors_adapter_is_read_without_torch(base, tmp_path):
    folder = save_adapter(base, tmp_path / "adapter")
    shapes = {name: tensor.shape for name, tensor in read_header(base / "model.safetensors").items()}
    program = (
        "import sys; from pathlib import Path; from model_merging_methods.checkpoints.lora_adapter import LoraAdapter; "
        f"adapter = LoraAdapter(Path({str(folder)!r}), {shapes!r}); "
        "print(len(adapter.low_rank), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["4", "False"]


def plain_low_rank(values: np.ndarray, change: LowRank) -> np.ndarray:
    """θ0 + Δ over a whole tensor, in float32: the rank in order, scaled and added last."""
    sums = np.zeros((len(change.up), change.down.shape[1]), np.float32)
    for k in range(len(change.down)):
        sums += change.up[:, k : k + 1] * change.down[k]
    return values + (np.float32(change.scaling) * sums).reshape(-1)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.one_of(st.integers(1, 40), st.integers(1000, 2100)),
    rank=st.integers(1, 9),
    scaling=st.floats(-4, 4, width=32),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_however_a_tensor_is_cut_its_values_are_those_of_the_plain_sum(rows, columns, rank, scaling, seed, data):
    random = np.random.default_rng(seed)
    down, up = (random.standard_normal(shape, dtype=np.float32) for shape in ((rank, columns), (rows, rank)))
    change = LowRank(down, up, scaling)
    pretrained = random.standard_normal(rows * columns, dtype=np.float32)
    cuts = data.draw(st.lists(st.integers(0, rows * columns), max_size=5))
    values = pretrained.copy()
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), rows * columns], strict=True):
        add_low_rank(values[start:stop], change, start)
    assert values.tobytes() == plain_low_rank(pretrained, change).tobytes()


def test_products_are_rounded_before_they_are_added():
    # Fused, the second product would keep its last bits, and the sum would not be 0.
    factor = np.float32(1 + 2**-12)
    product = np.float32(factor * factor)
    change = LowRank(
        np.array([[-product], [factor]], np.float32).repeat(64, axis=1), np.array([[1, factor]], np.float32), 1.0
    )
    values = np.zeros(64, np.float32)
    add_low_rank(values, change, 0)
    assert not values.any()


def test_every_setting_of_peft_is_read_or_harmless_or_refused():
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    assert READ_SETTINGS | HARMLESS_SETTINGS | set(REFUSED_SETTINGS) == fields
    assert not (READ_SETTINGS | HARMLESS_SETTINGS) & set(REFUSED_SETTINGS)


def change_config(folder: Path, **config) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    stored = load_file(folder / WEIGHTS)
    change(stored)
    save_file(stored, folder / WEIGHTS)


def refusal(folder: Path, base: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_adapter(folder, base)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message
    return message


@pytest.mark.parametrize("name", [*REFUSED_SETTINGS, "a_setting_of_the_future"])
def test_a_setting_that_cannot_be_applied_is_refused_by_name(base, tmp_path, name):
    folder = save_adapter(base, tmp_path / "adapter")
    change_config(folder, **{name: REFUSED_SETTINGS.get(name, {"on": True})})
    message = refusal(folder, base)
    assert f"setting {name} " in message and "merge_and_unload()" in message


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_16", "olora", "corda", "lora_ga", "loftq"])
def test_an_initialization_that_changes_the_pretrained_weights_is_refused(base, tmp_path, start):
    folder = save_adapter(base, tmp_path / "adapter")
    change_config(folder, init_lora_weights=start)
    assert f"init_lora_weights is {start}" in refusal(folder, base)


def test_peft_itself_takes_pissa_from_the_pretrained_weights(base, tmp_path):
    folder = save_adapter(base, tmp_path / "adapter", init_lora_weights="pissa")
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).merge_and_unload()
    change_config(folder, init_lora_weights=True)
    added = apply(open_adapter(folder, base), base)[f"{QUERY}.weight"]
    assert np.abs(added - merged.state_dict()[f"{QUERY}.weight"].numpy()).max() > 0.01


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"peft_type": "IA3"}, "peft_type is IA3"),
        ({"r": "4"}, "r or rank_pattern"),
        ({"r": 0}, "r or rank_pattern"),
        ({"r": 8}, "rank 4, and 8 in"),
        ({"rank_pattern": {"q_proj": 2}}, "rank 4, and 2 in"),
        ({"rank_pattern": ["q_proj"]}, "r or rank_pattern"),
        ({"lora_alpha": None}, "lora_alpha or alpha_pattern"),
        ({"alpha_pattern": {"q_proj": True}}, "lora_alpha or alpha_pattern"),
        ({"alpha_pattern": {"(q_proj": 2}}, "'(q_proj', which is no regular expression"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is set"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(base, tmp_path, config, told):
    folder = save_adapter(base, tmp_path / "adapter")
    change_config(folder, **config)
    assert told in refusal(folder, base)


A, B = (f"base_model.model.{QUERY}.lora_{side}.weight" for side in "AB")
UNKNOWN = "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"
HEAD = "base_model.model.lm_head.weight"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda stored: stored.pop(B), "not both lora_A and lora_B for model.layers.0.self_attn.q_proj.weight"),
        (lambda stored: stored.update({UNKNOWN: stored[A].clone()}), UNKNOWN),
        (lambda stored: stored.update({"encoder.weight": torch.ones(3)}), "encoder.weight"),
        (lambda stored: stored.update({B.replace("B.weight", "magnitude_vector"): torch.ones(16)}), "magnitude_vector"),
        (lambda stored: stored.update({A: stored[A][:, :8].clone()}), "does not fit [16, 16]"),
        (lambda stored: stored.update({A: stored[A][:2].clone()}), "does not fit [16, 16]"),
        (lambda stored: stored.update({A: torch.empty(0)}), "no low-rank matrix"),
        (lambda stored: stored.update({A: stored[A].int()}), "dtype I32"),
        (lambda stored: stored.update({A.replace("weight", "default.weight"): stored[A] + 1}), "under two names"),
        (lambda stored: stored.update({HEAD.replace("weight", "base_layer.weight"): stored[HEAD] + 1}), "two names"),
        (
            lambda stored: stored.update({HEAD: torch.ones(ROWS, 15)}),
            "[12, 15] where the pretrained model has [12, 16]",
        ),
        (lambda stored: stored.update({"base_model.model.model.norm.weight": torch.ones(17)}), "[17] where"),
        (lambda stored: stored[A].fill_(float("nan")), f"tensor {A} holds NaN or infinity"),
        (lambda stored: stored.clear(), "holds no tensors"),
    ],
)
def test_tensors_that_cannot_be_applied_are_refused_by_name(base, tmp_path, change, told):
    folder = save_adapter(base, tmp_path / "adapter", modules_to_save=["lm_head"])
    change_weights(folder, change)
    assert told in refusal(folder, base)


def test_an_adapter_of_another_backbone_is_refused(base, tmp_path):
    wider = save_model(tmp_path / "wider", seed=0, hidden_size=32)
    folder = save_adapter(wider, tmp_path / "adapter")
    assert "does not fit [16, 16]" in refusal(folder, base)


def test_nan_in_a_replaced_tensor_is_told_when_it_is_read(base, tmp_path):
    folder = save_adapter(base, tmp_path / "adapter", modules_to_save=["lm_head"])
    change_weights(folder, lambda stored: stored[HEAD][3].fill_(float("nan")))
    adapter = open_adapter(folder, base)
    with pytest.raises(UserError, match=r"lm_head\.weight holds NaN"):
        adapter.read_replaced("lm_head.weight", 0, ROWS * 16)


def test_a_file_that_becomes_shorter_is_told(base, tmp_path):
    folder = save_adapter(base, tmp_path / "adapter", modules_to_save=["lm_head"])
    adapter = open_adapter(folder, base)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[: adapter.replaced["lm_head.weight"].offset + 9])
    with pytest.raises(UserError, match="ends within tensor lm_head"):
        adapter.read_replaced("lm_head.weight", 0, ROWS * 16)


@pytest.mark.parametrize("config", [{"target_modules": ["embed_tokens"]}, {"modules_to_save": ["embed_tokens"]}])
def test_a_change_of_tied_embeddings_alone_is_refused(tied_base, tmp_path, config):
    folder = save_adapter(tied_base, tmp_path / "adapter", **config)
    assert "model.embed_tokens.weight alone" in refusal(folder, tied_base)


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["lm_head"]},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
    ],
)
def test_a_change_of_a_tied_output_is_refused(tied_base, tmp_path, config):
    folder = save_adapter(tied_base, tmp_path / "adapter", **config)
    assert "output embeddings, which the pretrained model has tied" in refusal(folder, tied_base)


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_broken_config_is_told(base, tmp_path, content):
    folder = save_adapter(base, tmp_path / "adapter")
    (folder / CONFIG).write_text(content)
    assert CONFIG in refusal(folder, base)


def test_missing_and_truncated_weights_are_told(base, tmp_path):
    folder = save_adapter(base, tmp_path / "adapter")
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-5])
    assert "truncated or corrupt" in refusal(folder, base)
    (folder / WEIGHTS).unlink()
    assert "holds no adapter weights" in refusal(folder, base)


def test_a_pickled_file_that_holds_more_than_tensors_is_refused(base, tmp_path):
    folder = save_adapter(base, tmp_path / "adapter", pickled=True)
    torch.save({"weight": Path("x")}, folder / "adapter_model.bin")
    assert "cannot be read as pickled weights" in refusal(folder, base)


def test_an_adapter_beside_a_whole_model_is_refused(base, tmp_path):
    folder = save_adapter(base, tmp_path / "adapter")
    (folder / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    assert "both an adapter" in refusal(folder, base)
