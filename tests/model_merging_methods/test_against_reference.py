"""The engine's merges are those of the formulas over whole tensors, for models of every kind."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_merging_methods.kernels.mask_weights import apply_mask, magnitude_drop_mask, random_drop_mask
from model_merging_methods.merge_models import MergeWork, merge_models
from model_merging_methods.merge_record import read_record
from model_merging_methods.merge_request import Mask, MergeParameters, MergeRequest, Mixup, mask_key
from model_merging_methods.merging_methods import MERGING_METHODS, Coefficients, elect_signs, trimmed_task_vectors

ROLES = ("instruct", "math", "code", "fourth", "fifth")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WORDS = ["<unk>", "a", "b", "c", "d"]
Tensors = dict[str, Tensor]


@dataclass
class Model:
    """A made-up model: its tensors, and its tokens in the order of their rows."""

    tensors: Tensors
    tokens: list[str]

    def save(self, folder: Path, shards: int) -> None:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": len(self.tokens)}))
        own = {token: row for row, token in enumerate(self.tokens[: len(WORDS)])}
        added = [
            {"id": row, "content": token, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False}
            for row, token in enumerate(self.tokens) if row >= len(WORDS)
        ]  # fmt: skip
        model = {"type": "WordLevel", "vocab": own, "unk_token": "<unk>"}
        (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": added, "model": model}))
        names = sorted(self.tensors)
        pieces = [names[i::shards] for i in range(shards) if names[i::shards]]
        if len(pieces) == 1:
            save_file(self.tensors, folder / "model.safetensors")
            return
        weight_map = {}
        for i, piece in enumerate(pieces):
            weight_map.update(dict.fromkeys(piece, f"model-{i}.safetensors"))
            save_file({name: self.tensors[name] for name in piece}, folder / f"model-{i}.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def make_models(seed: int, number: int, width: int, others: list[int], dtypes: list[torch.dtype], added: list[int]):
    """A base and fine-tunes. Task vectors hold zeros, equal magnitudes and exact opposites in plenty."""
    generator = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (len(WORDS), width), "lm_head.weight": (len(WORDS), width)}
    shapes.update({f"model.layers.{i}.w": (size,) for i, size in enumerate(others)})
    base = {name: generator.integers(-8, 9, shape) / 8 for name, shape in shapes.items()}
    steps = np.array([0, 0, 0, 0.125, -0.125, 0.125, -0.125, 0.25, -0.5, 0.0625])
    models = []
    for i in range(number + 1):
        tensors = {}
        for name, values in base.items():
            noise = generator.choice(steps, values.shape) if i else 0
            own = values + noise + (generator.normal(0, 0.02, values.shape) * (generator.random(values.shape) < 0.2))
            extra = generator.normal(0, 0.1, (added[i], width)) if values.ndim == 2 else np.empty((0,))
            tensors[name] = torch.from_numpy(np.concatenate([own, extra])).to(dtypes[i])
        # Some models add the same tokens, some others', in other orders.
        tokens = list(generator.permutation([f"<new {j}>" for j in range(3)])[: added[i]])
        models.append(Model(tensors, WORDS + tokens))
    return models


def aligned(models: list[Model]) -> list[Tensors]:
    """All models in float32 with the rows of the merged vocabulary: the base's, then added tokens in model order; a
    model that lacks one has the mean of its rows there."""
    tokens = list(dict.fromkeys(token for model in models for token in model.tokens))
    result = []
    for model in models:
        tensors = {name: tensor.float() for name, tensor in model.tensors.items()}
        for name in tensors:
            if tensors[name].dim() == 2:
                mean = tensors[name].double().mean(dim=0).float()
                rows = [tensors[name][model.tokens.index(token)] if token in model.tokens else mean for token in tokens]
                tensors[name] = torch.stack(rows)
        result.append(tensors)
    return result


def kth_smallest(values: Tensor, k: int) -> float | None:
    return values.abs().sort().values[k - 1].item() if k else None


def masked(pretrained: Tensor, finetuned: Tensor, role: str, name: str, parameters: MergeParameters) -> Tensor:
    mask = parameters.mask
    on_deltas = mask.weight_format == "delta_weight"
    values = (finetuned - pretrained if on_deltas else finetuned).flatten()
    if mask.mask_strategy == "random":
        dropped = random_drop_mask(mask_key(parameters.seed, role, name), 0, len(values), mask.weight_mask_rate)
    else:
        dropped = magnitude_drop_mask(values, kth_smallest(values, int(len(values) * mask.weight_mask_rate)))
    values = apply_mask(values, dropped, mask.weight_mask_rate, mask.use_weight_rescale).reshape(finetuned.shape)
    return pretrained + values if on_deltas else values


def merge_whole(models: list[Model], parameters: MergeParameters) -> Tensors:
    """The reference: every formula on all parameters at once."""
    base, *finetuned = aligned(models)
    names = [name for name in base if not parameters.excludes(name)]
    if parameters.mask is not None:
        finetuned = [
            {name: masked(base[name], tensors[name], role, name, parameters) for name in names}
            for role, tensors in zip(ROLES, finetuned, strict=False)
        ]
    whole = torch.cat([base[name].flatten() for name in names])
    models_whole = [torch.cat([tensors[name].flatten() for name in names]) for tensors in finetuned]
    k = int(len(whole) * parameters.param_value_mask_rate)
    thresholds = tuple(kth_smallest(theta - whole, k) or 0.0 for theta in models_whole)
    total = elect_signs(trimmed_task_vectors(whole, models_whole, thresholds), majority_sign=0).sum().item()
    using = Coefficients(
        parameters.mixup.ratios if parameters.mixup else None,
        parameters.scaling_coefficient,
        thresholds,
        (total > 0) - (total < 0),
    )
    merged = MERGING_METHODS[parameters.method].formula(whole, models_whole, using)
    pieces = dict(zip(names, merged.split([base[name].numel() for name in names]), strict=True))
    return {name: pieces[name].reshape(base[name].shape) if name in pieces else base[name] for name in base}


rates = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]) | st.floats(0, 0.99)
masks = st.builds(
    Mask,
    weight_mask_rate=rates,
    use_weight_rescale=st.booleans(),
    mask_strategy=st.sampled_from(["random", "magnitude"]),
    weight_format=st.sampled_from(["delta_weight", "finetuned_weight"]),
)


@st.composite
def merges(draw):
    number = draw(st.integers(2, 5))
    ratios = draw(st.lists(st.floats(-0.5, 1.5), min_size=number - 1, max_size=number - 1))
    parameters = MergeParameters(
        method=draw(st.sampled_from(sorted(MERGING_METHODS))),
        scaling_coefficient=draw(st.sampled_from([1.0, 0.5, -0.3])),
        param_value_mask_rate=draw(rates),
        mask=draw(st.none() | masks),
        mixup=draw(st.none() | st.just(Mixup((*ratios, 1 - sum(ratios))))),
        seed=draw(st.integers(0, 3)),
        dtype=draw(st.sampled_from([None, "float32", "float16", "bfloat16"])),
        exclude_param_names_regex=draw(st.sampled_from([(), (), (r"layers\.0\.",), ("lm_head", "embed")])),
    )
    models = make_models(
        seed=draw(st.integers(0, 2**32)),
        number=number,
        width=draw(st.integers(1, 9)),
        others=draw(st.lists(st.integers(1, 60), min_size=1, max_size=3)),
        dtypes=draw(st.lists(st.sampled_from(DTYPES), min_size=number + 1, max_size=number + 1)),
        added=[0, *draw(st.lists(st.integers(0, 3), min_size=number, max_size=number))],
    )
    return models, parameters


@given(merges(), st.data())
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_merge_is_the_formula_over_whole_tensors(tmp_path_factory, merge, data):
    models, parameters = merge
    folder = tmp_path_factory.mktemp("merge")
    roles = ROLES[: len(models) - 1]
    for role, model in zip(("base", *roles), models, strict=True):
        model.save(folder / role, data.draw(st.integers(1, 3), "input shards"))
    work = MergeWork(
        allow_unrelated=True,
        threads=data.draw(st.integers(1, 3), "threads"),
        block_size=data.draw(st.sampled_from([1, 2, 7, 64, 1 << 19]), "block size"),
        largest_shard=data.draw(st.sampled_from([1, 100, 10**9]), "largest shard"),
    )
    request = MergeRequest(folder / "base", {role: folder / role for role in roles}, parameters)
    merge_models(request, {roles[0]: folder / "merged"}, work=work)

    found = {k: v for file in (folder / "merged").glob("*.safetensors") for k, v in load_file(file).items()}
    expected = merge_whole(models, parameters)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        dtype = getattr(torch, parameters.dtype) if parameters.dtype else models[0].tensors[name].dtype
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor.to(dtype)), name


@pytest.fixture
def folder(tmp_path) -> Path:
    models = make_models(5, 2, 4, [30, 20], [torch.float16] * 3, [0, 1, 2])
    for role, model in zip(("base", "instruct", "math"), models, strict=True):
        model.save(tmp_path / role, 2)
    return tmp_path


def record_of(folder: Path, name: str, parameters: MergeParameters, **work) -> dict:
    request = MergeRequest(folder / "base", {role: folder / role for role in ("instruct", "math")}, parameters)
    merge_models(request, {"math": folder / name}, work=MergeWork(allow_unrelated=True, **work))
    return read_record(folder / name / "merge_record.json")


@pytest.mark.parametrize("method", ["average_merging", "ties_merging"])
def test_fingerprints_of_inputs_do_not_depend_on_how_they_are_read(folder, method):
    parameters = MergeParameters(method)
    streamed = record_of(folder, "streamed", parameters)
    read_apart = record_of(folder, "apart", parameters, block_size=3, threads=3)
    assert streamed["inputs"] == read_apart["inputs"]
    assert streamed["fingerprint"] == read_apart["fingerprint"]


def test_a_changed_value_changes_the_fingerprint_where_it_matters(folder):
    def change(role: str, name: str) -> None:
        file = next(f for f in (folder / role).glob("*.safetensors") if name in load_file(f))
        tensors = load_file(file)
        tensors[name] = tensors[name] + 1
        save_file(tensors, file)

    exclude = ("lm_head",)
    average = MergeParameters("average_merging", exclude_param_names_regex=exclude)
    first = record_of(folder, "first", average)["fingerprint"]
    change("base", "model.layers.0.w")  # averaging does not read it
    change("math", "lm_head.weight")  # left as the base has it
    assert record_of(folder, "second", average)["fingerprint"] == first
    change("base", "lm_head.weight")
    assert record_of(folder, "third", average)["fingerprint"] != first


def test_what_is_not_floating_point_is_the_base_s(folder):
    for number, role in enumerate(("base", "instruct", "math")):
        buffer = {"model.token_types": torch.arange(5) + number, "model.mask": torch.tensor([True, False])}
        save_file(buffer, folder / role / "model-2.safetensors")
        index = folder / role / "model.safetensors.index.json"
        content = json.loads(index.read_text())
        content["weight_map"].update(dict.fromkeys(buffer, "model-2.safetensors"))
        index.write_text(json.dumps(content))
    for method in ("average_merging", "ties_merging"):
        record_of(folder, method, MergeParameters(method, dtype="float32"))
        merged = load_file(folder / method / "model.safetensors")
        assert torch.equal(merged["model.token_types"], torch.arange(5))
        assert torch.equal(merged["model.mask"], torch.tensor([True, False]))
