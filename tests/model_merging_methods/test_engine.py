"""Merges of random models of every kind have the values of the papers' definitions, computed in numpy."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from model_merging_methods.kernels.mask_weights import random_drop_mask
from model_merging_methods.merge_parameters import Mask, MergeParameters, mask_of, parameters_of
from model_merging_methods.merge_record import read_record
from model_merging_methods.merge_request import mask_key
from model_merging_methods.methods import METHODS
from model_merging_methods.mixup import Mixup
from tests.model_merging_methods.merges import AVERAGE, PAIR, merge

ROLES = ("instruct", "math", "code", "fourth", "fifth")
PRECISION = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
WORDS = ["<unk>", "a", "b", "c", "d"]
Arrays = dict[str, np.ndarray]


@dataclass
class Model:
    """A made-up model: its tensors, and its tokens in the order of their rows."""

    tensors: dict[str, torch.Tensor]
    tokens: list[str]

    def save(self, folder: Path, shards: int) -> None:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": len(self.tokens)}))
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        added = [
            {"id": row, "content": token, "special": True, **flags}
            for row, token in enumerate(self.tokens[5:], start=5)
        ]
        model = {"type": "WordLevel", "vocab": {word: row for row, word in enumerate(WORDS)}, "unk_token": "<unk>"}
        (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": added, "model": model}))
        names = sorted(self.tensors)
        weight_map = {}
        for i, piece in enumerate(names[i::shards] for i in range(shards)):
            weight_map |= dict.fromkeys(piece, f"model-{i}.safetensors")
            save_file({name: self.tensors[name] for name in piece}, folder / f"model-{i}.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def make_models(seed: int, width: int, others: list[int], dtypes: list[torch.dtype], added: list[int]) -> list[Model]:
    """A base and fine-tunes. Task vectors have many zeros, equal magnitudes and exact opposites, and all numbers are
    exact in every dtype."""
    generator = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (len(WORDS), width), "lm_head.weight": (len(WORDS), width)}
    shapes |= {f"model.layers.{i}.w": (size,) for i, size in enumerate(others)}
    base = {name: generator.integers(-8, 9, shape) / 8 for name, shape in shapes.items()}
    steps = np.array([0, 0, 0, 0.125, -0.125, 0.125, -0.125, 0.25, -0.5, 0.0625])
    models = []
    for i, dtype in enumerate(dtypes):
        tensors = {}
        for name, values in base.items():
            own = values + (generator.choice(steps, values.shape) if i else 0)
            extra = generator.integers(-4, 5, (added[i], width)) / 16 if values.ndim == 2 else np.empty(0)
            tensors[name] = torch.from_numpy(np.concatenate([own, extra])).to(dtype)
        # Some models add the same tokens, some different ones, in other orders.
        tokens = list(generator.permutation([f"<new {j}>" for j in range(3)])[: added[i]])
        models.append(Model(tensors, WORDS + tokens))
    return models


def aligned(models: list[Model]) -> list[Arrays]:
    """All models with the rows of the merged vocabulary: the base's, then added tokens in model order. A model that
    lacks one has the mean of its rows there."""
    tokens = list(dict.fromkeys(token for model in models for token in model.tokens))
    result = []
    for model in models:
        tensors = {name: tensor.double().numpy() for name, tensor in model.tensors.items()}
        for name, values in tensors.items():
            if values.ndim == 2:
                row_of = dict(zip(model.tokens, values, strict=True))
                tensors[name] = np.stack([row_of.get(token, values.mean(0)) for token in tokens])
        result.append({name: values.astype(np.float32) for name, values in tensors.items()})
    return result


def kth_smallest(values: np.ndarray, k: int) -> float:
    return np.sort(np.abs(values), axis=None)[k - 1] if k else -1.0


def masked(base: np.ndarray, finetuned: np.ndarray, key: int, mask: Mask) -> np.ndarray:
    on_deltas = mask.weight_format == "delta_weight"
    values = finetuned - base if on_deltas else finetuned
    rate = mask.values["weight_mask_rate"]
    if mask.name == "dare":
        dropped = random_drop_mask(key, 0, values.size, rate).numpy().reshape(values.shape)
    else:
        dropped = np.abs(values) <= kth_smallest(values, int(values.size * rate))
    values = np.where(dropped, np.float32(0), values)
    if mask.values["use_weight_rescale"] and rate != 1:
        values = values / np.float32(1 - rate)
    return base + values if on_deltas else values


def ties(deltas: np.ndarray, trim_rate: float, ratios: np.ndarray | None) -> np.ndarray:
    """The disjoint merge of task vectors, float32 [K, n]."""
    k = int(deltas.shape[1] * trim_rate)
    trimmed = np.stack([np.where(np.abs(delta) >= kth_smallest(delta, k), delta, np.float32(0)) for delta in deltas])
    total = trimmed[0]
    for delta in trimmed[1:]:
        total = total + delta
    signs = np.where(total == 0, np.sign(np.sign(total).sum()), np.sign(total))
    elected = np.where(trimmed * signs > 0, trimmed, 0).astype(np.float64)
    taking_part = elected != 0
    mean = elected.sum(0) / np.maximum(taking_part.sum(0), 1)
    if ratios is None:
        return mean
    share = ratios @ taking_part
    interpolated = ratios @ elected
    some = np.where(share == 0, mean, interpolated / np.where(share == 0, 1, share))
    counts = taking_part.sum(0)
    return np.where(counts == len(deltas), interpolated, np.where(counts > 1, some, mean))


def definition(models: list[Model], parameters: MergeParameters) -> Arrays:
    """The merge of whole models, as the papers define it."""
    base, *finetuned = aligned(models)
    names = [name for name in base if not parameters.excludes(name)]
    if parameters.mask is not None:
        finetuned = [
            {n: masked(base[n], own[n], mask_key(parameters.seed, role, n), parameters.mask) for n in names}
            for role, own in zip(ROLES, finetuned, strict=False)
        ]
    theta0 = np.concatenate([base[name].ravel() for name in names])
    thetas = np.stack([np.concatenate([own[name].ravel() for name in names]) for own in finetuned])
    ratios = None if parameters.mixup is None else np.array(parameters.mixup.ratios)
    ones = np.ones(len(thetas))
    if parameters.method == "average_merging":
        merged = thetas.astype(np.float64).mean(0) if ratios is None else ratios @ thetas.astype(np.float64)
    else:
        deltas = thetas - theta0
        tau = (ones if ratios is None else ratios) @ deltas.astype(np.float64)
        if parameters.method == "ties_merging":
            tau = ties(deltas, parameters.values["param_value_mask_rate"], ratios)
        merged = theta0 + parameters.values["scaling_coefficient"] * tau
    pieces = np.split(merged, np.cumsum([base[name].size for name in names])[:-1])
    return base | {name: piece.reshape(base[name].shape) for name, piece in zip(names, pieces, strict=True)}


rates = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]) | st.floats(0, 0.99)
masks = st.builds(
    mask_of,
    st.sampled_from(["random", "magnitude"]),
    weight_mask_rate=rates,
    use_weight_rescale=st.booleans(),
    weight_format=st.sampled_from(["delta_weight", "finetuned_weight"]),
)


@st.composite
def merges(draw):
    number = draw(st.integers(2, 5))
    ratios = [draw(st.integers(-4, 12)) / 8 for _ in range(number - 1)]
    method = draw(st.sampled_from(["average_merging", "task_arithmetic", "ties_merging"]))
    options = {"scaling_coefficient": draw(st.sampled_from([1.0, 0.5, -0.3])), "param_value_mask_rate": draw(rates)}
    parameters = parameters_of(
        method,
        **{name: value for name, value in options.items() if name in METHODS[method].options},
        mask=draw(st.none() | masks),
        mixup=draw(st.none() | st.just(Mixup((*ratios, 1 - sum(ratios))))),
        seed=draw(st.integers(0, 3)),
        dtype=draw(st.sampled_from([None, "float32", "float16", "bfloat16"])),
        exclude_param_names_regex=draw(st.sampled_from([(), (), (r"layers\.0\.",), ("lm_head", "embed")])),
    )
    models = make_models(
        seed=draw(st.integers(0, 2**32)),
        width=draw(st.integers(1, 9)),
        others=draw(st.lists(st.integers(1, 40), min_size=1, max_size=3)),
        dtypes=draw(st.lists(st.sampled_from(list(PRECISION)), min_size=number + 1, max_size=number + 1)),
        added=[0, *draw(st.lists(st.integers(0, 3), min_size=number, max_size=number))],
    )
    return models, parameters


@given(merges(), st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_merges_have_the_values_of_their_definition(tmp_path_factory, case, data):
    models, parameters = case
    folder = tmp_path_factory.mktemp("merge")
    roles = ROLES[: len(models) - 1]
    for role, model in zip(("base", *roles), models, strict=True):
        model.save(folder / role, data.draw(st.integers(1, 3), "input shards"))
    work = {
        "threads": data.draw(st.integers(1, 3), "threads"),
        "block_size": data.draw(st.sampled_from([1, 2, 7, 64, 1 << 19]), "block size"),
        "largest_shard": data.draw(st.sampled_from([1, 100, 10**9]), "largest shard"),
    }
    found = merge(folder, folder / "merged", parameters, roles, allow_unrelated=True, **work)
    expected = definition(models, parameters)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        dtype = getattr(torch, parameters.dtype) if parameters.dtype else models[0].tensors[name].dtype
        assert found[name].dtype == dtype
        precision = PRECISION[dtype]
        np.testing.assert_allclose(found[name].double().numpy(), values, rtol=precision, atol=5e-6, err_msg=name)


@pytest.fixture
def folder(tmp_path) -> Path:
    models = make_models(5, 4, [30, 20], [torch.float16] * 3, [0, 1, 2])
    for role, model in zip(("base", *PAIR), models, strict=True):
        model.save(tmp_path / role, 2)
    return tmp_path


def record_of(folder: Path, name: str, parameters: MergeParameters, **work) -> dict:
    merge(folder, folder / name, parameters, allow_unrelated=True, **work)
    return read_record(folder / name / "merge_record.json")


@pytest.mark.parametrize("method", ["average_merging", "ties_merging"])
def test_input_fingerprints_do_not_depend_on_blocks(folder, method):
    streamed = record_of(folder, "streamed", parameters_of(method))
    read_again = record_of(folder, "again", parameters_of(method), block_size=3, threads=3)
    assert streamed["inputs"] == read_again["inputs"]
    assert streamed["fingerprint"] == read_again["fingerprint"]


def test_a_changed_value_changes_the_fingerprint_if_the_merge_depends_on_it(folder):
    def change(role: str, name: str) -> None:
        file = next(f for f in (folder / role).glob("*.safetensors") if name in load_file(f))
        tensors = load_file(file)
        save_file({**tensors, name: tensors[name] + 1}, file)

    average = parameters_of("average_merging", exclude_param_names_regex=("lm_head",))
    first = record_of(folder, "first", average)["fingerprint"]
    change("base", "model.layers.0.w")  # averaging does not read it
    change("math", "lm_head.weight")  # excluded, so the base's is copied
    assert record_of(folder, "second", average)["fingerprint"] == first
    change("base", "lm_head.weight")
    assert record_of(folder, "third", average)["fingerprint"] != first


def test_integers_and_booleans_are_copied_from_the_base(folder):
    for number, role in enumerate(("base", *PAIR)):
        buffers = {"model.token_types": torch.arange(5) + number, "model.mask": torch.tensor([True, False])}
        save_file(buffers, folder / role / "model-2.safetensors")
        index = folder / role / "model.safetensors.index.json"
        places = json.loads(index.read_text())["weight_map"] | dict.fromkeys(buffers, "model-2.safetensors")
        index.write_text(json.dumps({"weight_map": places}))
    for parameters in (AVERAGE, parameters_of("ties_merging", dtype="float32")):
        merged = merge(folder, folder / parameters.method, parameters, allow_unrelated=True)
        assert torch.equal(merged["model.token_types"], torch.arange(5))
        assert torch.equal(merged["model.mask"], torch.tensor([True, False]))
