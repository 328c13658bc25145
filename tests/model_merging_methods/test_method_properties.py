"""Properties of every merging method and mask. A new method adds one row."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model_merging_methods.kernels import arithmetic
from model_merging_methods.masks import MASKS
from model_merging_methods.merge_folders import MergeWork, merge_folders
from model_merging_methods.merge_parameters import MergeParameters, mask_of, parameters_of
from model_merging_methods.merge_progress import MergeProgress
from model_merging_methods.method import Sees
from model_merging_methods.methods import METHODS
from model_merging_methods.mixup import Mixup
from tests.model_merging_methods.merges import file_bytes, request
from tests.model_merging_methods.small_models import change_tensors, save_model, save_models
from utils.errors import UserError

ROLES = ("first", "second", "third")


@dataclass
class Row:
    """How a method is tried: its options; whether the order of the models makes a difference; whether merging models
    that all equal the base may be off by rounding."""

    options: dict[str, Any] = field(default_factory=dict)
    is_symmetric: bool = True
    rounds: bool = False


METHOD_ROWS = {
    "ace": Row(),
    "arcee_fusion": Row(),
    "aswudi": Row({"auto_rank_method": "stable_rank"}),
    "average_merging": Row(rounds=True),
    "consensus_ta": Row({"mask_lambda": 0.4, "k": 1}),
    "iso_c": Row(),
    "iso_cts": Row(),
    "karcher": Row(rounds=True),
    "linear": Row({"weight": 0.7}, rounds=True),
    "localize_and_stitch": Row({"sparsity": 0.3}),
    "magmax": Row({"scaling_coefficient": 0.5}),
    "model_stock": Row(),
    "multislerp": Row(),
    "nearswap": Row({"t": 0.005}),
    "nuslerp": Row(),
    "optmerge": Row({"iterations": 20}),
    "pcb_nlp": Row(),
    "pcb_vision": Row({"att_ratio": 0.2}),
    "ram": Row({"epsilon": 0.005}),
    "ramplus_tl": Row({"epsilon": 0.005, "r": 0.5}),
    "sce": Row({"select_topk": 0.5}),
    "slerp": Row({"t": 0.4}, is_symmetric=False, rounds=True),
    "swudi": Row(),
    "task_arithmetic": Row({"scaling_coefficient": 0.7}),
    "ties_merging": Row({"param_value_mask_rate": 0.4}),
    "ties_per_tensor": Row({"density": 0.6}),
    "ties_per_tensor_mergellm": Row({"param_value_mask_rate": 0.4}),
    "tsv_m": Row(),
    "tsv_rank_reduction": Row(),
    "widen": Row(),
    "wudi": Row({"iterations": 20}),
}
# Options that send a method another way through the engine.
VARIANTS = {
    "model_stock by row": ("model_stock", {"filter_wise": True}),
    "nuslerp by column": ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    "task arithmetic, normalised": ("task_arithmetic", {"normalize": True, "weight": 0.3}),
    "ties by count": ("ties_per_tensor", {"density": 0.5, "elect_by": "count"}),
}
MASK_ROWS = {
    "breadcrumbs": {"density": 0.7, "gamma": 0.1, "rescale": "l1"},
    "breadcrumbs_mergellm": {"density": 0.9, "low": 0.1},
    "dare": {"weight_mask_rate": 0.3, "use_l1_rescale": True},
    "della": {"density": 0.6, "epsilon": 0.2},
    "magnitude": {"weight_mask_rate": 0.3},
}


def test_every_method_and_mask_has_a_row():
    assert METHOD_ROWS.keys() == METHODS.keys()
    assert MASK_ROWS.keys() == MASKS.keys()


def number_of_models(method: str) -> int:
    least, most = METHODS[method].models
    return min(max(least, len(ROLES)), most or len(ROLES))


def tried(method: str, **more: Any) -> MergeParameters:
    return parameters_of(method, **{**METHOD_ROWS[method].options, **more})


CASES = {name: tried(name) for name in METHOD_ROWS if name in METHODS}
CASES |= {name: parameters_of(method, **options) for name, (method, options) in VARIANTS.items()}
CASES |= {
    f"{mask}, then {method}": parameters_of(method, mask=mask_of(mask, **options))
    for mask, options in MASK_ROWS.items()
    for method in ("task_arithmetic", "ties_merging", "ties_per_tensor", "nuslerp", "multislerp", "average_merging")
}
CASES |= {
    f"{name}, M3": parameters_of(name, mixup=Mixup((0.5, 0.2, 0.3)))
    for name in ("linear", "multislerp", "ties_per_tensor")
}
every_case = pytest.mark.parametrize("parameters", CASES.values(), ids=CASES)
every_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A base and fine-tunes; the second did not change one matrix, nor the third one row. A parameter is a scalar."""
    root = save_models(tmp_path_factory.mktemp("models"), ROLES)
    for number, role in enumerate(("base", *ROLES)):
        scalar = {"model.layers.0.mlp.scale": torch.tensor(1 + 0.01 * number)}
        change_tensors(root / role, lambda tensors, scalar=scalar: {**tensors, **scalar})
    base = load_file(root / "base" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    change_tensors(root / "second", lambda tensors: {**tensors, name: base[name]})

    def keep_row(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors[name][3] = base[name][3]
        return tensors

    change_tensors(root / "third", keep_row)
    return root


def merged(models: Path, target: Path, parameters: MergeParameters, roles=None, **work: Any) -> dict[str, bytes]:
    roles = roles or ROLES[: number_of_models(parameters.method)]
    work.setdefault("allow_unrelated", True)
    merge_folders(request(models, parameters, roles), {next(iter(roles)): target}, work=MergeWork(**work))
    return file_bytes(target)


def values(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@every_case
def test_threads_blocks_and_shards_do_not_change_the_values(models, tmp_path, parameters):
    merged(models, tmp_path / "one", parameters, threads=1)
    merged(models, tmp_path / "two", parameters, threads=2, block_size=333, largest_shard=8000)
    one, two = values(tmp_path / "one"), values(tmp_path / "two")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(tensor.isfinite().all() for tensor in one.values())


@every_method
def test_the_order_of_the_models_makes_no_difference_where_the_formula_is_symmetric(models, tmp_path, method):
    if not METHOD_ROWS[method].is_symmetric or number_of_models(method) == 1:
        pytest.skip("the order counts, or there is one model")
    roles = ROLES[: number_of_models(method)]
    merged(models, tmp_path / "forwards", tried(method), roles)
    merged(models, tmp_path / "backwards", tried(method), roles[::-1])
    backwards = values(tmp_path / "backwards")
    for name, tensor in values(tmp_path / "forwards").items():
        torch.testing.assert_close(tensor, backwards[name], rtol=1e-5, atol=1e-6)


@every_case
def test_models_that_equal_the_base_give_the_base(models, tmp_path, parameters):
    roles = dict.fromkeys(ROLES[: number_of_models(parameters.method)], "base")
    merged(models, tmp_path / "out", parameters, roles)
    base = values(models / "base")
    for name, tensor in values(tmp_path / "out").items():
        rounds = METHOD_ROWS[parameters.method].rounds
        torch.testing.assert_close(tensor, base[name], rtol=3e-7 if rounds else 0, atol=0)


@every_method
def test_a_number_of_models_outside_the_bounds_is_refused(models, tmp_path, method):
    least, most = METHODS[method].models
    for number in {least - 1, (most or 0) + 1} - {0, 1 if most is None else 0}:
        roles = {f"model{i}": "first" for i in range(number)}
        with pytest.raises(UserError, match=f"{method}: merges .* fine-tune"):
            merged(models, tmp_path / "out", tried(method), roles)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def spoiled_models(models, tmp_path_factory) -> Path:
    """The same models, with a NaN in the first."""

    def spoil(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors["model.layers.1.mlp.down_proj.weight"][2, 5] = torch.nan
        return tensors

    root = shutil.copytree(models, tmp_path_factory.mktemp("spoiled") / "models")
    change_tensors(root / "first", spoil)
    return root


@every_case
def test_a_value_that_is_not_a_number_is_refused(spoiled_models, tmp_path, parameters):
    with pytest.raises(UserError, match=r"first.*down_proj"):
        merged(spoiled_models, tmp_path / "out", parameters)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.takes_ratios])
def test_a_ratio_of_one_gives_finite_values(models, tmp_path, method):
    roles = ROLES[: number_of_models(method)]
    corner = Mixup((1.0, *[0.0] * (len(roles) - 1)))
    options = {name: value for name, value in METHOD_ROWS[method].options.items() if name != "weight"}
    merged(models, tmp_path / "out", parameters_of(method, mixup=corner, **options), roles)
    assert all(tensor.isfinite().all() for tensor in values(tmp_path / "out").values())


IN_BLOCKS = {name: parameters for name, parameters in CASES.items() if arithmetic.sees_blocks(parameters)}


@pytest.mark.parametrize("parameters", IN_BLOCKS.values(), ids=IN_BLOCKS)
def test_the_compiled_kernel_gives_the_formulas_values(models, tmp_path, monkeypatch, parameters):
    merged(models, tmp_path / "kernel", parameters)
    monkeypatch.setattr(arithmetic, "has_kernel", lambda parameters: False)
    merged(models, tmp_path / "formula", parameters)
    formula = values(tmp_path / "formula")
    is_gram = METHODS[parameters.method].sees is Sees.GRAM  # its products are summed in another order
    for name, tensor in values(tmp_path / "kernel").items():
        torch.testing.assert_close(tensor, formula[name], rtol=1e-6 if is_gram else 0, atol=1e-7 if is_gram else 0)


MASKED = {
    name: parameters
    for name, parameters in IN_BLOCKS.items()
    if parameters.mask is not None and METHODS[parameters.method].sees is not Sees.GRAM
}


@pytest.mark.parametrize("parameters", MASKED.values(), ids=MASKED)
def test_the_compiled_mask_gives_the_formulas_values(models, tmp_path, monkeypatch, parameters):
    merged(models, tmp_path / "compiled", parameters, block_size=333)
    monkeypatch.setattr(arithmetic, "masks_in_blocks", lambda mask: False)
    merged(models, tmp_path / "formula", parameters)
    formula = values(tmp_path / "formula")
    for name, tensor in values(tmp_path / "compiled").items():
        assert torch.equal(tensor, formula[name]), name


@every_case
def test_an_interrupted_merge_resumes_with_the_same_bytes(models, tmp_path, monkeypatch, parameters):
    work = {"largest_shard": 8000, "threads": 2}
    expected = merged(models, tmp_path / "undisturbed", parameters, **work)
    keep, kept = MergeProgress.keep_shard, []

    def interrupt(progress: MergeProgress, shard, reports) -> None:
        if len(kept) == 2:
            raise KeyboardInterrupt
        keep(progress, shard, reports)
        kept.append(shard.file)

    monkeypatch.setattr(MergeProgress, "keep_shard", interrupt)
    with pytest.raises(KeyboardInterrupt):
        merged(models, tmp_path / "out", parameters, **work)
    assert not (tmp_path / "out").exists()
    unfinished = tmp_path / ".out.unfinished"
    before = {name: (unfinished / name).stat().st_ino for name in kept}
    monkeypatch.setattr(MergeProgress, "keep_shard", keep)
    assert merged(models, tmp_path / "out", parameters, **work) == expected
    assert {name: (tmp_path / "out" / name).stat().st_ino for name in kept} == before


def test_models_of_other_dtypes_are_merged_by_every_kind_of_method(tmp_path):
    base = save_model(tmp_path / "base", seed=0, dtype=torch.bfloat16)
    for seed, role in enumerate(ROLES, start=1):
        save_model(tmp_path / role, seed, base=base, dtype=torch.float16)
    for method in ("average_merging", "nuslerp", "magmax", "ramplus_tl"):
        merged(tmp_path, tmp_path / "out" / method, tried(method))
        assert {tensor.dtype for tensor in values(tmp_path / "out" / method).values()} == {torch.bfloat16}
