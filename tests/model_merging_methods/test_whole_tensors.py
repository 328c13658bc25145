"""Merges by methods that see a whole tensor, where their published forms fail."""

import logging
import math
import shutil
import sys
import warnings
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import GPT2Config

from model_merging_methods.merge_parameters import MergeParameters, mask_of, parameters_of
from model_merging_methods.method import Sees, WholeTensor
from model_merging_methods.methods import METHODS
from tests.model_merging_methods.merges import merge, read_weights
from tests.model_merging_methods.small_models import change_json, change_tensors, save_family, save_models
from utils.errors import UserError

ROLES = ("first", "second")
CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"), ROLES)


@pytest.mark.parametrize("method", ["swudi", "aswudi"])
def test_two_copies_of_a_fine_tune_give_that_fine_tune(models, tmp_path, method):
    copies = {"one": "first", "other": "first"}
    found = merge(models, tmp_path / "out", parameters_of(method), copies, allow_unrelated=True)
    expected = read_weights(models / "first")
    for name in (name for name in found if "proj" in name):
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6)


def test_iso_cts_without_a_common_space_takes_no_more_directions_than_there_are(tmp_path):
    """11 for each of three models would be 33 of 32."""
    roles = ("first", "second", "third")
    models = save_models(tmp_path / "models", roles, hidden_size=32)
    parameters = parameters_of("iso_cts", common_space_fraction=0.0)
    found = merge(models, tmp_path / "out", parameters, roles, allow_unrelated=True)
    base = read_weights(models / "base")
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert any((found[name] != base[name]).any() for name in found)


WHOLE = {name for name, method in METHODS.items() if method.sees is Sees.TENSOR}


@pytest.mark.parametrize("name", sorted(WHOLE))
@pytest.mark.parametrize(("hidden", "intermediate"), [(4096, 11008), (5120, 13824)])
def test_a_pair_of_llama_2_takes_no_more_than_its_models_and_result_of_the_largest_tensor(name, hidden, intermediate):
    method = METHODS[name]
    embeddings, models = (32000, hidden), method.models[1] or 2
    shapes = [(hidden, hidden), (intermediate, hidden), (hidden, intermediate)]
    shapes += [embeddings] if method.merges("model.embed_tokens.weight", embeddings) else []
    assert max(method.memory(*shape, models) for shape in shapes) <= (models + 2) * math.prod(embeddings)


@pytest.mark.parametrize("shape", [(1200, 300), (300, 1200), (600, 600)])
@pytest.mark.parametrize("name", sorted(name for name in WHOLE if METHODS[name].in_strips is None))
def test_a_method_takes_no_more_memory_than_it_declares(name, shape, monkeypatch):
    """By torch's own account, for two models of which one changed much more than the other. Strips are in the
    proportion that they have to large matrices."""
    for module in [module for key, module in sys.modules.items() if key.startswith("model_merging_methods")]:
        for strip, size in {"STRIP": 96, "NARROW": 32, "STRETCH": 1024, "_STRETCH": 1024}.items():
            if hasattr(module, strip):
                monkeypatch.setattr(module, strip, size)
    method, read = METHODS[name], changes(shape)
    models = method.models[1] or 2
    options = {"iterations": 1} if "iterations" in method.options else {}
    options = {option: about.default for option, about in method.options.items()} | options
    x = WholeTensor("model.layers.0.mlp.down_proj.weight", shape, models, read)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        method.formula(x, **options)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    peak = max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
    assert peak <= 1.03 * 4 * method.memory(*shape, models)


def changes(shape: tuple[int, int]) -> Callable[[int, bool], torch.Tensor]:
    """θ0 and two models, as a formula reads them."""
    generator = torch.Generator().manual_seed(0)
    base, *deltas = (torch.randn(shape, generator=generator) * deviation for deviation in (2e-2, 1e-5, 1e-3))

    def read(model: int, as_delta: bool) -> torch.Tensor:
        if model == 0:
            return base.clone()
        return deltas[model - 1].clone() if as_delta else deltas[model - 1] + base

    return read


@pytest.mark.parametrize(("method", "is_above"), [("ace", True), ("sce", False)])
def test_a_merge_that_takes_more_than_that_says_so_before_it_starts(models, tmp_path, caplog, method, is_above):
    with caplog.at_level(logging.INFO):
        merge(models, tmp_path / "out", parameters_of(method), ROLES, allow_unrelated=True)
    (line,) = [record.message for record in caplog.records if "needs whole tensors" in record.message]
    assert ("times the largest tensor" in line) is is_above


@pytest.mark.parametrize("method", ["pcb_nlp", "pcb_vision"])
def test_pcb_merges_ninety_models(models, tmp_path, method):
    """With more than 88, the exponential of a sum of scores overflows float32."""
    roles = {f"model{i}": ROLES[i % 2] for i in range(90)}
    parameters = parameters_of(method, exclude_param_names_regex=("layers", "embed"))
    found = merge(models, tmp_path / "out", parameters, roles, allow_unrelated=True)
    base = read_weights(models / "base")
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert any((found[name] != base[name]).any() for name in found)


def test_a_merge_that_moves_far_from_the_base_says_so(models, tmp_path, caplog):
    """ACE, with task vectors of which one is a hundred times as long as another."""
    base = read_weights(models / "base")
    roles = {}
    for times in (1.0, 0.1, 0.01):
        role = f"times{times:g}".replace(".", "_")
        shutil.copytree(models / "first", tmp_path / role)
        change_tensors(tmp_path / role, lambda own, times=times: {n: base[n] + times * (own[n] - base[n]) for n in own})
        roles[role] = str(tmp_path / role)
    with caplog.at_level(logging.WARNING):
        merge(models, tmp_path / "out", parameters_of("ace"), roles, allow_unrelated=True)
    (warning,) = [record.message for record in caplog.records if "times as far" in record.message]
    assert "warning: tensor model." in warning and "scaling_coefficient" in warning
    assert "times as far" in (tmp_path / "out" / "README.md").read_text()
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        merge(models, tmp_path / "mean", parameters_of("iso_c"), roles, allow_unrelated=True)
    assert "times as far" not in caplog.text


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> tuple[Path, Path]:
    """GPT-2 as transformers writes it, and the same weights stored as those of linear layers are."""
    config = GPT2Config(vocab_size=12, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    stored = save_family(tmp_path_factory.mktemp("gpt2"), config, ROLES)
    linear = shutil.copytree(stored, tmp_path_factory.mktemp("linear") / "models")
    for role in ("base", *ROLES):
        change_tensors(linear / role, transposed)
        change_json(linear / role / "config.json", model_type="gpt_bigcode")
    return stored, linear


@pytest.mark.parametrize("method", ["arcee_fusion", "ramplus_tl"])
@pytest.mark.parametrize("shape", [(3, 5), (5, 1)])
def test_a_difference_beyond_float32_is_one_error(tmp_path, method, shape):
    models = save_models(tmp_path / "models", ROLES[:1])
    for role, value in {"base": -3e38, ROLES[0]: 3e38}.items():
        change_tensors(models / role, lambda own, value=value: {**own, "model.far.weight": torch.full(shape, value)})
    with pytest.raises(UserError, match=r"model\.far\.weight: the merged values do not fit"), warnings.catch_warnings():
        warnings.simplefilter("error")
        merge(models, tmp_path / "out", parameters_of(method), ROLES[:1], allow_unrelated=True)


def test_a_decomposition_that_fails_is_one_error(tmp_path):
    models = save_models(tmp_path / "models", ROLES)
    for role, value in {"base": -3e38, **dict.fromkeys(ROLES, 3e38)}.items():
        change_tensors(models / role, lambda own, value=value: {**own, "model.far.weight": torch.full((3, 5), value)})
    with pytest.raises(UserError, match=r"tensor model\.far\.weight: linalg\.eigh: .*; leave it out"):
        merge(models, tmp_path / "out", parameters_of("iso_c"), ROLES, allow_unrelated=True)


def tried(name: str) -> MergeParameters:
    """A method, or task arithmetic after DELLA."""
    mask = mask_of("della", density=0.5, epsilon=0.2)
    return parameters_of(name) if name in METHODS else parameters_of("task_arithmetic", mask=mask)


def transposed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.T if name.endswith(CONV1D) else tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("method", ["ace", "arcee_fusion", "aswudi", "optmerge", "swudi", "widen", "wudi", "della"])
def test_gpt2_merges_as_if_its_layers_were_stored_as_linear_ones(gpt2, tmp_path, method):
    stored, linear = gpt2
    roles = ROLES[:1] if method == "arcee_fusion" else ROLES
    parameters = tried(method)
    found = transposed(merge(stored, tmp_path / "out", parameters, roles, allow_unrelated=True))
    expected = merge(linear, tmp_path / "expected", parameters, roles, allow_unrelated=True)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", ["arcee_fusion", "karcher", "iso_c", "ramplus_tl", "task_arithmetic", "della"])
@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_a_tensor_without_values_stays_one(tmp_path, method, shape):
    models = save_models(tmp_path / "models", ROLES)
    for folder in models.iterdir():
        change_tensors(folder, lambda tensors: {**tensors, "model.nothing.weight": torch.zeros(shape)})
    roles = ROLES[:1] if method == "arcee_fusion" else ROLES
    found = merge(models, tmp_path / "out", tried(method), roles, allow_unrelated=True)
    assert found["model.nothing.weight"].shape == shape
