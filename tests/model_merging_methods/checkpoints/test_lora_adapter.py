"""LoRA adapters: applied as by PEFT's merge_and_unload, refused in one line, and merged as their whole fine-tunes."""

import dataclasses
import shutil
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
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from model_merging_methods.checkpoints.lora_adapter import (
    HARMLESS_SETTINGS,
    READ_SETTINGS,
    LoraAdapter,
    LowRank,
    add_low_rank,
)
from model_merging_methods.merge_folders import merge_folders
from model_merging_methods.merge_record import read_record, request_from_record
from tests.model_merging_methods.merges import MERGES, file_bytes, merge
from tests.model_merging_methods.small_models import change_json, save_model, small_config
from utils.errors import UserError
from utils.safetensors_files import read_header

pytestmark = pytest.mark.filterwarnings("ignore")

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
QUERY = "model.layers.0.self_attn.q_proj"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ROWS = 12  # of the small models' vocabulary
ATTENTION = ["q_proj", "v_proj"]

# Every setting of LoraConfig that is refused, with a value that turns it on.
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
def bases(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("bases")
    save_model(root / "llama", seed=0)
    save_model(root / "tied", seed=0, tied=True)
    torch.manual_seed(0)
    config = small_config(ROWS)
    config.attention_bias = config.mlp_bias = True
    LlamaForCausalLM(config).save_pretrained(root / "biased")
    config = GPT2Config(vocab_size=ROWS, n_embd=16, n_layer=1, n_head=2, tie_word_embeddings=False)
    GPT2LMHeadModel(config).save_pretrained(root / "gpt2")
    return root


@pytest.fixture
def base(bases) -> Path:
    return bases / "llama"


def save_adapter(base: Path, folder: Path, rows: int = ROWS, pickled: bool = False, dtype=None, **config) -> Path:
    """An adapter as after some training, of a model that has grown to this many rows."""
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


def open_adapter(folder: Path, base: Path) -> LoraAdapter:
    return LoraAdapter(folder, {name: tensor.shape for name, tensor in read_header(base / "model.safetensors").items()})


def apply(adapter: LoraAdapter, base: Path) -> dict[str, np.ndarray]:
    applied = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        values, shape = tensor.numpy().reshape(-1).copy(), tensor.shape
        if name in adapter.replaced:
            shape = adapter.replaced[name].shape
            values = adapter.read_replaced(name, 0, int(np.prod(shape)))
        if name in adapter.low_rank:
            add_low_rank(values, adapter.low_rank[name], 0)
        applied[name] = values.reshape(shape)
    return applied


TRANSPOSED = {"fan_in_fan_out": True}
# The base, settings of the adapter, and the tensors that it replaces, if any are expected.
ADAPTERS = [
    ("llama", {}, None),
    ("llama", {"lora_alpha": 8, "use_rslora": True, "target_modules": "all-linear"}, None),
    (
        "llama",
        {
            "rank_pattern": {"q_proj": 3, "layers.1.self_attn.v_proj": 5},
            "alpha_pattern": {r"layers\.0\..*": 7, "proj": 9, "v_proj": 11},
        },
        None,
    ),
    ("llama", {"use_rslora": True, "rank_pattern": {"^model.layers.0.self_attn.q_proj": 2}}, None),
    ("llama", {"target_modules": ["embed_tokens", "lm_head", "down_proj"]}, None),
    ("llama", {"modules_to_save": ["lm_head", "norm"]}, None),
    ("llama", {"modules_to_save": ["embed_tokens", "lm_head"], "layers_to_transform": [1]}, {EMBED, HEAD}),
    ("llama", {"init_lora_weights": "gaussian", "lora_dropout": 0.1}, None),
    ("llama", {"init_lora_weights": "mica"}, None),
    ("llama", {"init_lora_weights": False}, None),
    ("llama", {"dtype": torch.bfloat16, "modules_to_save": ["lm_head"]}, {HEAD}),
    ("llama", {"pickled": True, "modules_to_save": ["lm_head"]}, {HEAD}),
    ("llama", {"rows": ROWS + 3}, {EMBED, HEAD}),
    ("llama", {"rows": ROWS + 3, "target_modules": [*ATTENTION, "embed_tokens", "lm_head"]}, {EMBED, HEAD}),
    ("tied", {"rows": ROWS + 3}, {EMBED}),
    ("biased", {"bias": "lora_only", "lora_alpha": 8}, None),
    ("biased", {"bias": "all", "lora_alpha": 8}, None),
    # Stored transposed. With lm_head, PEFT leaves fan_in_fan_out false; attn.c_proj is square, and still transposed.
    ("gpt2", {**TRANSPOSED, "target_modules": ["c_attn"]}, None),
    ("gpt2", {**TRANSPOSED, "target_modules": ["c_proj"]}, None),
    ("gpt2", {**TRANSPOSED, "target_modules": ["c_attn", "c_proj", "lm_head"]}, None),
    ("gpt2", {**TRANSPOSED, "target_modules": ["wte", "c_fc"]}, None),
    # A bias that is saved twice, with one value.
    ("gpt2", {"target_modules": ["c_attn"], "bias": "all", "modules_to_save": ["ln_f"]}, None),
]


def in_order(value: object) -> str:
    """A test id that is the same in every process, although the order of a set is not."""
    return str(sorted(value) if isinstance(value, set) else value)


@pytest.mark.parametrize(("name", "options", "replaced"), ADAPTERS, ids=in_order)
def test_an_adapter_gives_what_peft_merges(bases, tmp_path, name, options, replaced):
    base, rows = bases / name, options.get("rows", ROWS)
    folder = save_adapter(base, tmp_path / "adapter", **options)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if model.config.vocab_size != rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    expected = PeftModel.from_pretrained(model, folder).merge_and_unload().state_dict()
    adapter = open_adapter(folder, base)
    changes = [change.up @ change.down for change in adapter.low_rank.values()]
    assert changes and all(np.abs(change).max() > 1e-3 for change in changes)
    assert replaced is None or set(adapter.replaced) == replaced
    applied = apply(adapter, base)
    assert adapter.low_rank.keys() | adapter.replaced.keys() <= applied.keys()
    for name, values in applied.items():
        np.testing.assert_allclose(values, expected[name].numpy(), rtol=0, atol=1e-6, err_msg=name)


def test_a_base_saved_without_the_body_s_name_fits(bases, tmp_path):
    base = shutil.copytree(bases / "gpt2", tmp_path / "base")
    patterns = {"alpha_pattern": {"transformer.h.0.attn.c_attn": 5}}
    folder = save_adapter(base, tmp_path / "adapter", target_modules=["c_attn", "c_fc"], **TRANSPOSED, **patterns)
    expected = apply(open_adapter(folder, base), base)
    stored = load_file(base / "model.safetensors")
    save_file({n.removeprefix("transformer."): t for n, t in stored.items()}, base / "model.safetensors")
    found = apply(open_adapter(folder, base), base)
    assert all(np.array_equal(found[n.removeprefix("transformer.")], values) for n, values in expected.items())


def test_names_of_older_versions_mean_the_same(base, tmp_path):
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


def test_a_replaced_tensor_is_read_by_stretches(base, tmp_path):
    folder = save_adapter(base, tmp_path / "adapter", modules_to_save=["lm_head"], dtype=torch.bfloat16)
    adapter = open_adapter(folder, base)
    assert adapter.files == [folder / CONFIG, folder / WEIGHTS]
    whole = adapter.read_replaced("lm_head.weight", 0, ROWS * 16)
    assert np.array_equal(adapter.read_replaced("lm_head.weight", 37, 120), whole[37:120])
    assert whole.dtype == np.float32


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
def test_stretches_have_the_values_of_the_plain_sum(rows, columns, rank, scaling, seed, data):
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


INITIALIZATIONS = ("pissa", "pissa_niter_16", "olora", "corda", "lora_ga", "loftq")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        *(({name: value}, f"setting {name} ") for name, value in REFUSED_SETTINGS.items()),
        ({"a_setting_of_the_future": {"on": True}}, "setting a_setting_of_the_future "),
        *(({"init_lora_weights": start}, f"init_lora_weights is {start}") for start in INITIALIZATIONS),
        ({"peft_type": "IA3"}, "peft_type is IA3"),
        ({"r": "4"}, "r or rank_pattern"),
        ({"r": 0}, "r or rank_pattern"),
        ({"r": 8}, "rank 4, but 8 in"),
        ({"rank_pattern": {"q_proj": 2}}, "rank 4, but 2 in"),
        ({"rank_pattern": ["q_proj"]}, "r or rank_pattern"),
        ({"lora_alpha": None}, "lora_alpha or alpha_pattern"),
        ({"alpha_pattern": {"(q_proj": 2}}, "'(q_proj', which is not a regular expression"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is set"),
    ],
)
def test_settings_that_cannot_be_applied_are_refused(base, tmp_path, config, said):
    folder = save_adapter(base, tmp_path / "adapter")
    change_json(folder / CONFIG, **config)
    assert said in refusal(folder, base)


A, B = (f"base_model.model.{QUERY}.lora_{side}.weight" for side in "AB")
UNKNOWN = "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"
PEFT_HEAD = "base_model.model.lm_head.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda stored: stored.pop(B), "lacks lora_A or lora_B for model.layers.0.self_attn.q_proj.weight"),
        (lambda stored: stored.update({UNKNOWN: stored[A].clone()}), UNKNOWN),
        (lambda stored: stored.update({"encoder.weight": torch.ones(3)}), "encoder.weight"),
        (lambda stored: stored.update({B.replace("B.weight", "magnitude_vector"): torch.ones(16)}), "magnitude_vector"),
        (lambda stored: stored.update({A: stored[A][:, :8].clone()}), "does not fit [16, 16]"),
        (lambda stored: stored.update({A: torch.empty(0)}), "not a low-rank matrix"),
        (lambda stored: stored.update({A: stored[A].int()}), "dtype I32"),
        (lambda stored: stored.update({A.replace("weight", "default.weight"): stored[A] + 1}), "under two names"),
        (
            lambda stored: stored.update({PEFT_HEAD.replace("weight", "base_layer.weight"): stored[PEFT_HEAD] + 1}),
            "two names",
        ),
        (
            lambda stored: stored.update({PEFT_HEAD: torch.ones(ROWS, 15)}),
            "[12, 15], but the pretrained model has [12, 16]",
        ),
        (lambda stored: stored[A].fill_(float("nan")), f"tensor {A} holds NaN or infinity"),
        (lambda stored: stored.clear(), "holds no tensors"),
    ],
)
def test_tensors_that_cannot_be_applied_are_refused_by_name(base, tmp_path, change, said):
    folder = save_adapter(base, tmp_path / "adapter", modules_to_save=["lm_head"])
    change_weights(folder, change)
    assert said in refusal(folder, base)


def test_a_damaged_replacement_is_reported_when_it_is_read(base, tmp_path):
    folder = save_adapter(base, tmp_path / "adapter", modules_to_save=["lm_head"])
    change_weights(folder, lambda stored: stored[PEFT_HEAD][3].fill_(float("nan")))
    adapter = open_adapter(folder, base)
    with pytest.raises(UserError, match=r"lm_head\.weight holds NaN"):
        adapter.read_replaced("lm_head.weight", 0, ROWS * 16)
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[: adapter.replaced["lm_head.weight"].offset + 9])
    with pytest.raises(UserError, match="ends within tensor lm_head"):
        adapter.read_replaced("lm_head.weight", 0, ROWS * 16)


ALONE = "model.embed_tokens.weight alone"
TIED = "output embeddings, which the pretrained model has tied"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"target_modules": ["embed_tokens"]}, ALONE),
        ({"modules_to_save": ["embed_tokens"]}, ALONE),
        ({"target_modules": ["lm_head"]}, TIED),
        ({"modules_to_save": ["lm_head"]}, TIED),
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, TIED),
    ],
)
def test_changes_of_tied_embeddings_are_refused(bases, tmp_path, config, said):
    assert said in refusal(save_adapter(bases / "tied", tmp_path / "adapter", **config), bases / "tied")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / CONFIG).write_text("{"), CONFIG),
        (lambda folder: (folder / WEIGHTS).unlink(), "holds no adapter weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "both an adapter"),
    ],
)
def test_damaged_folders_are_refused(base, tmp_path, damage, said):
    folder = save_adapter(base, tmp_path / "adapter")
    damage(folder)
    assert said in refusal(folder, base)


ADAPTED = ("math", "code")


@pytest.fixture(scope="module")
def models(bases, tmp_path_factory) -> Path:
    """A base; an adapter of it (`math`), the fine-tune that the adapter stands for (`whole`), another (`code`)."""
    root = tmp_path_factory.mktemp("models")
    base = shutil.copytree(bases / "llama", root / "base")
    save_model(root / "code", seed=1, base=base)
    save_adapter(base, root / "math", target_modules=["q_proj", "down_proj"], lora_alpha=1, modules_to_save=["lm_head"])
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), root / "math")
    model.merge_and_unload().save_pretrained(root / "whole")
    for path in base.glob("token*"):
        shutil.copy(path, root / "whole")
    return root


@pytest.mark.parametrize("method", ["average", "task arithmetic", "TIES", "DARE average"])
def test_an_adapter_merges_as_its_whole_fine_tune(models, tmp_path, method):
    found = merge(models, tmp_path / "adapter", MERGES[method], ADAPTED)
    expected = merge(models, tmp_path / "whole", MERGES[method], {"math": "whole", "code": "code"})
    assert found.keys() == expected.keys()
    different = {name for name in found if not torch.equal(found[name], expected[name])}
    assert method == "TIES" or all(torch.allclose(found[name], expected[name], atol=1e-6) for name in different)
    assert not any("k_proj" in name or "lm_head" in name for name in different), "these are equal in both"


def test_an_adapter_merges_to_the_same_bytes_for_any_blocks_and_again_from_the_record(models, tmp_path):
    merge(models, tmp_path / "first", MERGES["DARE average"], ADAPTED, threads=1)
    merge(models, tmp_path / "blocks", MERGES["DARE average"], ADAPTED, threads=3, block_size=7)
    record = tmp_path / "first" / "merge_record.json"
    files = next(entry for entry in read_record(record)["inputs"] if entry["role"] == "math")["files"]
    assert [file["name"] for file in files] == [CONFIG, WEIGHTS]
    merge_folders(request_from_record(record, {}), {"code": tmp_path / "again"}, made_from=record)
    assert file_bytes(tmp_path / "first") == file_bytes(tmp_path / "blocks") == file_bytes(tmp_path / "again")


def test_an_average_of_adapters_depends_on_the_base(models, tmp_path):
    root = shutil.copytree(models, tmp_path / "models")
    merge(root, tmp_path / "merged", MERGES["average"], ADAPTED)
    save_model(root / "base", seed=5)
    with pytest.raises(UserError, match="another run"):
        merge(root, tmp_path / "merged", MERGES["average"], ADAPTED)
