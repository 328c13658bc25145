"""`merge_models`, the front door in Python."""

from pathlib import Path

import numpy as np
import pytest

from model_merging_methods import merge_models
from tests.model_merging_methods.recipes.test_writing import MODELS
from utils.errors import UserError

MERGE = {
    "merging_method_name": "task_arithmetic",
    "pretrained_model": MODELS / "base",
    "models": {"math": MODELS / "math", "instruct": MODELS / "instruct"},
}


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_values_may_be_paths_and_of_numpy(tmp_path):
    as_texts = MERGE | {"pretrained_model": str(MODELS / "base"), "mixup_lambda": [0.25, 0.75]}
    merge_models(as_texts, tmp_path / "a")
    merge_models(MERGE | {"mixup_lambda": np.array([0.25, 0.75])}, tmp_path / "b")
    merge_models(MERGE | {"mixup_lambda": np.float64(0.25)}, tmp_path / "c")
    assert weights(tmp_path / "a") == weights(tmp_path / "b") == weights(tmp_path / "c")


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    merge_models(MERGE, "~/merged")
    assert (tmp_path / "merged" / "merge_record.json").is_file()


@pytest.mark.parametrize(
    ("change", "more", "error"),
    [
        ({"mixup_lambda": {0.3}}, {}, "recipe: mixup_lambda: is of the type set; give texts, numbers"),
        ({"models": {"math": "/no/math"}}, {}, "recipe, models: math: /no/math: no such model folder"),
        ({3: 0.5}, {}, "recipe: 3: is not a text"),
        ({"mixup": True}, {"seed": -1}, "seed -1: give a whole number"),
        ({"mixup": True}, {"seed": "3"}, "seed 3: give a whole number"),
        ({}, {"device": "gpu"}, "device gpu: choose one of cpu, cuda, auto"),
    ],
)
def test_bad_values_are_errors_of_one_line(change, more, error, tmp_path):
    with pytest.raises(UserError, match=error) as raised:
        merge_models(MERGE | change, tmp_path / "merged", **more)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_value_in_a_list_is_named_by_its_keys(tmp_path):
    models = [
        {"model": MODELS / name, "parameters": {"weight": weight}} for name, weight in (("base", 1), ("math", "x"))
    ]
    with pytest.raises(UserError, match=r"^recipe, models\[1\]\.parameters: weight: is 'x'; give a finite number$"):
        merge_models({"merge_method": "linear", "models": models}, tmp_path / "merged")
