"""A merge's figures about its models, and unrelated models, which stop it."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from model_merging_methods.comparison import layer_group
from model_merging_methods.merge_parameters import MergeParameters, mask_of, parameters_of
from model_merging_methods.merge_record import read_record
from tests.model_merging_methods.merges import AVERAGE, ROLES, merge, read_weights
from tests.model_merging_methods.small_models import change_json, change_tensors, save_model, save_models
from utils.errors import UserError


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    root = save_models(tmp_path_factory.mktemp("models"), ROLES)
    save_model(root / "stranger", seed=99)
    return root


def found(models: Path, target: Path, parameters: MergeParameters, roles=ROLES, **work) -> dict:
    merge(models, target, parameters, roles, **work)
    return read_record(target / "merge_record.json")["found"]["models"]


def whole(folder: Path, names=None) -> np.ndarray:
    tensors = read_weights(folder)
    return np.concatenate([tensors[name].double().numpy().ravel() for name in names or sorted(tensors)])


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def test_figures_cover_whole_models_and_every_layer(models, tmp_path):
    figures = found(models, tmp_path / "out", parameters_of("ties_merging", mask=mask_of(weight_mask_rate=0.25)))
    names = sorted(read_weights(models / "base"))
    layer_1 = [name for name in names if ".layers.1." in name]
    assert set(figures["groups"]) == {"embeddings", "layer 0", "layer 1", "output", "other"}
    for group, own in ((figures["overall"], names), (figures["groups"]["layer 1"], layer_1)):
        base = whole(models / "base", own)
        deltas = {role: whole(models / role, own) - base for role in ROLES}
        assert group["values"] == len(base)
        for role, delta in deltas.items():
            of = group["models"][role]
            assert of["change"] == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(base), rel=1e-4)
            assert of["unchanged"] == pytest.approx(np.mean(delta == 0), rel=1e-5)
            assert of["kept_by_mask"] == pytest.approx(0.75, abs=4 * math.sqrt(0.1875 / len(base)))
        pair, x, y = group["pairs"]["instruct code"], deltas["instruct"], deltas["code"]
        assert pair["cosine"] == pytest.approx(cosine(x, y), abs=1e-5)
        assert pair["sign_conflicts"] == pytest.approx(np.mean(x * y < 0), rel=1e-5)
    kept = figures["overall"]["models"]["math"]["kept_by_trim"]
    assert 0.5 <= kept < 0.51


def test_plain_averaging_compares_the_models_with_each_other(models, tmp_path):
    figures = found(models, tmp_path / "out", parameters_of("average_merging"))
    x, y = whole(models / "math"), whole(models / "code")
    pair = figures["overall"]["pairs"]["math code"]
    distance = np.linalg.norm(x - y) / math.sqrt(np.linalg.norm(x) * np.linalg.norm(y))
    assert pair["distance"] == pytest.approx(distance, rel=1e-4)
    assert pair["cosine"] == pytest.approx(cosine(x, y), rel=1e-5)
    assert pair["equal"] == pytest.approx(np.mean(x == y), rel=1e-5)
    assert figures["overall"]["models"]["math"] == {}


def test_figures_do_not_depend_on_threads_or_blocks(models, tmp_path):
    parameters = parameters_of("ties_merging")
    reference = found(models, tmp_path / "reference", parameters, threads=1)
    assert found(models, tmp_path / "threads", parameters, threads=3) == reference
    blocks = found(models, tmp_path / "blocks", parameters, block_size=100)
    assert blocks["overall"]["pairs"]["math code"]["cosine"] == pytest.approx(
        reference["overall"]["pairs"]["math code"]["cosine"], rel=1e-3
    )


@pytest.mark.parametrize("method", ["average_merging", "task_arithmetic", "ties_merging"])
def test_a_model_of_another_backbone_stops_the_merge(models, tmp_path, method):
    root = shutil.copytree(models, tmp_path / "in")
    change_json(root / "stranger" / "config.json", max_position_embeddings=32)
    roles = {"instruct": "instruct", "math": "math", "code": "stranger"}
    with pytest.raises(UserError, match=r"model code: .*backbone.*max_position_embeddings 32.*--allow_unrelated") as e:
        found(root, tmp_path / "out", parameters_of(method), roles)
    assert "\n" not in str(e.value) and "model math" not in str(e.value)
    assert not any(tmp_path.glob("*out*"))
    found(root, tmp_path / "out", parameters_of(method), roles, allow_unrelated=True)


def test_of_two_unrelated_models_without_a_base_both_are_named(models, tmp_path):
    with pytest.raises(UserError, match=r"model math and model code: .* differ by 1\.\d+ times"):
        found(models, tmp_path / "out", AVERAGE, {"math": "math", "code": "stranger"})


@pytest.mark.parametrize(("rate", "shown"), [(0.2, "100.0%"), (0.75, "50.0%")])
def test_trimming_shows_the_share_of_changed_values_that_it_keeps(models, tmp_path, caplog, rate, shown):
    """Half of the values are unchanged, so that the k-th smallest |δ| is 0 at a rate of 0.2."""
    root = shutil.copytree(models, tmp_path / "models")
    for role in ROLES[:2]:
        half_changed(root, role)
    caplog.set_level("INFO")
    found(root, tmp_path / "out", parameters_of("ties_merging", param_value_mask_rate=rate), ROLES[:2])
    table = [line.split() for line in caplog.messages if line.startswith(("model ", *ROLES))]
    assert table[0][-5:] == ["changed", "ones", "kept", "by", "trimming"]
    assert [row[-1] for row in table[1:3]] == [shown] * 2 and [row[-2] for row in table[1:3]] == ["50.0%"] * 2


def half_changed(root: Path, role: str) -> None:
    """Change every second value of a role's model, each by another number."""
    base = read_weights(root / "base")
    generator = np.random.default_rng(0)

    def changed(name: str) -> torch.Tensor:
        values = base[name].clone().view(-1)
        values[::2] += torch.from_numpy(generator.uniform(0.001, 0.01, len(values[::2])).astype(np.float32))
        return values.view(base[name].shape)

    change_tensors(root / role, lambda tensors: {name: changed(name) for name in tensors})


def test_fine_tunes_of_a_real_backbone_pass(tmp_path):
    zoo = Path(__file__).parents[2] / "scripts" / "tiny_zoo"
    figures = found(zoo, tmp_path / "out", parameters_of("task_arithmetic"))
    assert all(0.01 < of["change"] < 0.25 for of in figures["overall"]["models"].values())


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("model.embed_tokens.weight", "embeddings"),
        ("model.layers.11.mlp.up_proj.weight", "layer 11"),
        ("transformer.h.3.attn.c_attn.weight", "layer 3"),
        ("model.language_model.layers.2.input_layernorm.weight", "layer 2"),
        ("model.layers.5.block_sparse_moe.experts.7.w1.weight", "layer 5"),
        ("model.norm.weight", "other"),
        ("lm_head.weight", "output"),
        ("lm_head.bias", "output"),
    ],
)
def test_parameters_belong_to_their_layer(name, group):
    assert layer_group(name) == group


def test_a_mask_of_whole_tensors_shows_no_share_that_was_not_counted(models, tmp_path):
    parameters = parameters_of("task_arithmetic", mask=mask_of("della", density=0.5))
    figures = found(models, tmp_path / "out", parameters)["overall"]["models"]
    assert all("kept_by_mask" not in of and of["change"] > 0 for of in figures.values())
