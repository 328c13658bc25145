"""Passes over tensors so large that a sample says where their thresholds are."""

import json

import pytest
import torch
from safetensors.torch import save_file

from model_merging_methods.largest_magnitudes import largest
from model_merging_methods.merge_parameters import mask_of, parameters_of
from tests.model_merging_methods.merges import merge

N = 300_000


def changes() -> dict[str, torch.Tensor]:
    """Task vectors: without equal magnitudes, with many, and with most in one half only, where a sample misleads."""
    generator = torch.Generator().manual_seed(0)
    different = torch.randn(N, generator=generator)
    uneven = torch.cat([torch.zeros(N // 2), torch.randn(N // 2, generator=generator)])
    uneven[::997] = 5.0
    return {"different": different, "equal": (different * 4).round() / 4, "uneven": uneven}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for role, tensors in {"base": {name: torch.zeros(N) for name in changes()}, "first": changes()}.items():
        (root / role).mkdir()
        (root / role / "config.json").write_text(json.dumps({"model_type": "llama"}))
        save_file({f"model.layers.0.{name}": own for name, own in tensors.items()}, root / role / "model.safetensors")
    return root


@pytest.mark.parametrize("density", [0.001, 0.3, 0.5, 0.8])
def test_ties_in_each_tensor_keeps_exactly_the_largest_values(folder, tmp_path, density):
    parameters = parameters_of("ties_per_tensor", density=density)
    found = merge(folder, tmp_path / "merged", parameters, roles=("first",), allow_unrelated=True)
    for name, delta in changes().items():
        expected = delta.where(largest(delta.abs(), int(density * N)), 0)
        assert torch.equal(found[f"model.layers.0.{name}"], expected), name


def test_breadcrumbs_keeps_exactly_the_values_between(folder, tmp_path):
    parameters = parameters_of("task_arithmetic", mask=mask_of("breadcrumbs", density=0.8, gamma=0.05))
    found = merge(
        folder,
        tmp_path / "merged",
        parameters,
        roles={"one": "first", "two": "first"},
        role="one",
        allow_unrelated=True,
    )
    for name, delta in changes().items():
        magnitudes = delta.abs()
        kept = largest(magnitudes, N - int(0.15 * N)) & ~largest(magnitudes, int(0.05 * N))
        assert int(kept.sum()) == int(0.8 * N)
        assert torch.equal(found[f"model.layers.0.{name}"], 2 * delta.where(kept, 0)), name
