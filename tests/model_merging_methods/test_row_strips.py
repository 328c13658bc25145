"""Masks, methods and statistics in strips of rows: the same bytes as with whole parameters."""

import pytest

from model_merging_methods import row_strips
from model_merging_methods.merge_parameters import mask_of, parameters_of
from model_merging_methods.whole_tensors import WholeTensors, works_in_strips
from tests.model_merging_methods.merges import file_bytes, merge
from tests.model_merging_methods.small_models import save_models

ROLES = ("first", "second")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"), ROLES)


METHODS = ["average_merging", "task_arithmetic", "ties_per_tensor", "magmax", "ramplus_tl", "ties_merging", "pcb_nlp"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rescale", ["none", "inverse", "l1"])
@pytest.mark.parametrize("weight_format", ["delta_weight", "finetuned_weight"])
def test_strips_give_the_bytes_of_whole_parameters(models, tmp_path, monkeypatch, method, rescale, weight_format):
    mask = mask_of("della", density=0.6, epsilon=0.2, rescale=rescale, weight_format=weight_format)
    assert_same_bytes(models, tmp_path, monkeypatch, parameters_of(method, mask=mask, seed=3), ROLES)


def test_arcee_fusion_in_strips_gives_the_bytes_of_whole_parameters(models, tmp_path, monkeypatch):
    assert_same_bytes(models, tmp_path, monkeypatch, parameters_of("arcee_fusion"), ROLES[:1])


def assert_same_bytes(models, tmp_path, monkeypatch, parameters, roles):
    used = []
    monkeypatch.setattr(row_strips, "_STRIP", 100)  # most parameters have many
    monkeypatch.setattr(
        "model_merging_methods.whole_tensors.works_in_strips", lambda *x: used.append(works_in_strips(*x)) or used[-1]
    )
    with monkeypatch.context() as context:
        context.delattr(WholeTensors, "_tensors")
        merge(models, tmp_path / "strips", parameters, roles, block_size=1000, allow_unrelated=True)
    assert all(used)
    monkeypatch.setattr("model_merging_methods.whole_tensors.works_in_strips", lambda *x: False)
    merge(models, tmp_path / "whole", parameters, roles, allow_unrelated=True)
    assert file_bytes(tmp_path / "strips") == file_bytes(tmp_path / "whole")
