"""Merged weights for a running engine: those that the main job would save, to the bit."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model_merging_methods.candidate_weights import CandidateMerges
from model_merging_methods.engine import Merge
from model_merging_methods.merge_folders import MergeWork, merge_folders
from model_merging_methods.merge_parameters import MergeParameters, mask_of, parameters_of
from model_merging_methods.merge_request import MergeRequest
from model_merging_methods.mixup import Mixup
from tests.model_merging_methods.small_models import save_model
from utils.errors import UserError

ZOO = Path(__file__).parents[2] / "scripts" / "tiny_zoo"
MODELS = {"instruct": ZOO / "instruct", "math": ZOO / "math"}  # math has a token more
CANDIDATES = [
    parameters_of("average_merging", mixup=Mixup((0.3, 0.7))),
    parameters_of("task_arithmetic", scaling_coefficient=0.5, mixup=Mixup((0.9, 0.1))),
    parameters_of("ties_merging", param_value_mask_rate=0.7, mixup=Mixup((0.3, 0.7))),
    parameters_of(
        "ties_merging", mask=mask_of(weight_mask_rate=0.4, use_weight_rescale=True), mixup=Mixup((0.6, 0.4)), seed=3
    ),
    parameters_of("average_merging", mask=mask_of("magnitude", weight_mask_rate=0.3), mixup=Mixup((0.5, 0.5))),
    parameters_of("task_arithmetic", mixup=Mixup((0.5, 0.5)), exclude_param_names_regex=("norm",), dtype="float32"),
]


def saved(parameters: MergeParameters, target: Path) -> dict[str, torch.Tensor]:
    merge_folders(MergeRequest(ZOO / "base", MODELS, parameters), {"math": target}, work=MergeWork())
    return load_file(target / "model.safetensors")


@pytest.mark.parametrize("parameters", CANDIDATES, ids=str)
def test_the_weights_are_those_that_a_merge_saves(parameters, tmp_path):
    weights = CandidateMerges(ZOO / "base", MODELS).weights(parameters)
    expected = saved(parameters, tmp_path / "merged")
    for _ in range(2):  # they can be computed again
        computed = dict(pickle.loads(pickle.dumps(weights)))
        assert computed.keys() == expected.keys()
        for name, tensor in computed.items():
            assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]), name


def test_candidates_of_other_ratios_take_no_further_pass_for_thresholds(monkeypatch):
    passes = []
    found = Merge.statistics
    monkeypatch.setattr(Merge, "statistics", lambda merge: passes.append(merge.parameters) or found(merge))
    merges = CandidateMerges(ZOO / "base", MODELS)
    first, second = (
        merges.weights(parameters_of("ties_merging", scaling_coefficient=s, mixup=Mixup((w, 1 - w))))
        for s, w in ((1, 0.2), (2, 0.7))
    )
    assert len(passes) == 1
    assert first.statistics.of_model == second.statistics.of_model
    merges.weights(parameters_of("ties_merging", param_value_mask_rate=0.8, mixup=Mixup((0.5, 0.5))))
    assert len(passes) == 2
    for t in (0.2, 0.7):
        merges.weights(parameters_of("slerp", t=t))
    assert len(passes) == 3


def test_the_files_beside_the_weights_are_those_that_a_merge_saves(tmp_path):
    parameters = CANDIDATES[0]
    saved(parameters, tmp_path / "merged")
    (tmp_path / "files").mkdir()
    CandidateMerges(ZOO / "base", MODELS).write_model_files(tmp_path / "files", "math", parameters)
    names = {path.name for path in (tmp_path / "files").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= names
    for name in names:
        assert (tmp_path / "files" / name).read_bytes() == (tmp_path / "merged" / name).read_bytes()


def test_unrelated_models_and_senseless_parameters_are_refused(tmp_path):
    merges = CandidateMerges(ZOO / "base", MODELS)
    merges.check(parameters_of("ties_merging"), allow_unrelated=False)
    with pytest.raises(UserError, match="--mixup_lambda"):
        merges.check(parameters_of("average_merging", mixup=Mixup((1.0, 0.0, 0.0))), allow_unrelated=False)
    with pytest.raises(UserError, match="--exclude_param_names_regex"):
        merges.check(parameters_of("average_merging", exclude_param_names_regex=("no such",)), allow_unrelated=False)
    base = save_model(tmp_path / "base", seed=0)
    others = {"instruct": save_model(tmp_path / "own", 1, base=base), "math": save_model(tmp_path / "other", seed=2)}
    unrelated = CandidateMerges(base, others)
    unrelated.check(parameters_of("task_arithmetic"), allow_unrelated=True)
    with pytest.raises(UserError, match="--allow_unrelated"):
        unrelated.check(parameters_of("task_arithmetic"), allow_unrelated=False)
