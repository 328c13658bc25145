"""Merges by methods that see a whole tensor, where their published forms fail."""

import pytest
import torch

from model_merging_methods.merge_parameters import parameters_of
from tests.model_merging_methods.merges import merge, read_weights
from tests.model_merging_methods.small_models import save_models

ROLES = ("first", "second")


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


@pytest.mark.parametrize("method", ["pcb_nlp", "pcb_vision"])
def test_pcb_merges_ninety_models(models, tmp_path, method):
    roles = {f"model{i}": ROLES[i % 2] for i in range(90)}
    found = merge(models, tmp_path / "out", parameters_of(method), roles, allow_unrelated=True)
    base = read_weights(models / "base")
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert any((found[name] != base[name]).any() for name in found)
