"""The methods give the values that their authors' programs gave, through the command line, in float32 and bfloat16.

The recorded cases are those of the folder in the environment variable GOLDEN_METHODS; else all of them where they are
beside the repository; else the third of them in tests/golden/methods.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from merge_llms_instruct_math_code import build_parser
from model_merging_methods.command_line import requested_merge
from model_merging_methods.masks import MASKS
from model_merging_methods.masks.della import keep_probabilities
from model_merging_methods.merge_folders import MergeWork, merge_folders
from model_merging_methods.method import MaskPlace
from model_merging_methods.methods import METHODS

ROOT = Path(__file__).parents[2]
_PLACES = (ROOT.parent / "shared" / "golden" / "methods", ROOT / "tests" / "golden" / "methods")
GOLDEN = Path(os.environ.get("GOLDEN_METHODS") or next(place for place in _PLACES if place.is_dir()))
CASES = json.loads((GOLDEN / "cases.json").read_text())

NEEDS_DATA = ("fisher", "regmean")  # methods that need activations or gradients are not here yet

# The recorded option names of ours.
FACTORS = dict.fromkeys(("scaling", "lambda", "scaling_coefficient"), "scaling_coefficient")
OPTIONS = {
    "slerp_mergellm": {"slerp_t": "t"},
    "consensus_ta": {"lambda": "mask_lambda"},
    "mergekit_ramplus_tl": {"alpha": "ram_alpha"},
    "breadcrumbs_mergellm": {"param_density": "density", "param_value_mask_rate": "low"},
}
NOT_OPTIONS = ("exclude", "dataless", "lm_head_counts_in_the_threshold", "first_delta_times", "tensors", "optimizer")

# Recorded methods that are a mask before one of our methods, and the names that differ.
MASKED = {
    "mergekit_dare_linear": ("random", "task_arithmetic"),
    "mergekit_dare_ties": ("random", "ties_per_tensor"),
    "mergekit_breadcrumbs": ("breadcrumbs", "task_arithmetic"),
    "mergekit_breadcrumbs_ties": ("breadcrumbs", "ties_per_tensor"),
    "mergekit_della": ("della", "ties_per_tensor"),
    "mergekit_della_linear": ("della", "task_arithmetic"),
    "breadcrumbs_mergellm": ("breadcrumbs_mergellm", "task_arithmetic"),
}
NORMALIZED = {"mergekit_ties", "mergekit_della"}  # by default; others do not divide by the sum of the weights
NAMES = {"mergekit_ties": "ties_per_tensor", "slerp_mergellm": "slerp"}
BASE_COUNTS_AS_MODEL = ("mergekit_slerp", "slerp_mergellm")  # the base is one of the two models, or plays no part


def is_covered(case: dict[str, Any]) -> bool:
    return not case.get("informative_only") and not case["method"].startswith(NEEDS_DATA)


def folder_of(name: str, places: Path = GOLDEN) -> Path:
    """The model of a name in cases.json."""
    if Path(name).is_absolute():
        return Path(name)
    kind, _, own = name.rpartition(":")
    return {
        "": places / "models" / "float32",
        "bf16": places / "models" / "bfloat16",
        "old": places.parent / "merge" / "float32",
        "oldbf16": places.parent / "merge" / "bfloat16",
    }[kind] / own


def method_and_mask(case: dict[str, Any]) -> tuple[str, str | None]:
    method = case["method"]
    if method in MASKED:
        mask, method = MASKED[method]
        return method, mask
    return NAMES.get(method, method.removeprefix("mergekit_")), None


def options_of(case: dict[str, Any]) -> dict[str, Any]:
    """The recorded options under our names."""
    names = {**FACTORS, **OPTIONS.get(case["method"], {})}
    options = {names.get(name, name): value for name, value in case["options"].items() if name not in NOT_OPTIONS}
    method, mask = method_and_mask(case)
    if "normalize" in METHODS[method].options and case["method"].startswith("mergekit"):
        options.setdefault("normalize", case["method"] in NORMALIZED or method == "linear")
    if mask == "random":
        densities = options.pop("density")
        options["weight_mask_rate"] = [1 - density for density in densities]
        options["use_l1_rescale"] = options.pop("rescale", True)
    if case["method"] == "mergekit_breadcrumbs_ties" and "normalize" not in case["options"]:
        options["normalize"] = False
    if case["method"] in ("mergekit_nuslerp", "mergekit_multislerp"):
        options["task_vectors"] = case.get("base") is not None
    return options


def models_of(case: dict[str, Any]) -> list[str]:
    """The fine-tunes: without the base, where the method merges with it."""
    if case["method"] in BASE_COUNTS_AS_MODEL:
        return case["models"]
    return [name for name in case["models"] if name != case.get("base")]


def name_of(model: str) -> str:
    return Path(model.rpartition(":")[2]).name


def command_line(case: dict[str, Any], dtype: str = "float32") -> list[str]:
    """The options of the main job for a case."""
    method, mask = method_and_mask(case)
    models = models_of(case)
    base = folder_of(case.get("base") or folder_for_alignment(models[0]))
    words = ["--pretrained_model", base, "--models", *(f"{name_of(model)}={folder_of(model)}" for model in models)]
    if mask is None:
        words += ["--merging_method_name", method]
    else:
        words += ["--mask_strategy", mask, "--mask_apply_method", method]
    for option, value in options_of(case).items():
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, list):
            words += [
                f"--{option}",
                *(f"{name_of(model)}={number}" for model, number in zip(models, value, strict=True)),
            ]
        elif value is not None:
            words += [f"--{option}", value]
    return [*map(str, words), "--dtype", dtype, "--allow_unrelated"]


def folder_for_alignment(model: str) -> str:
    """A base for methods that do not use one."""
    kind, _, _ = model.rpartition(":")
    return f"{kind}:base" if kind else "base"


def merged(case: dict[str, Any], target: Path, dtype: str = "float32", **work: Any) -> dict[str, torch.Tensor]:
    options = build_parser().parse_args(command_line(case, dtype))
    request = requested_merge(options)
    role = next(iter(request.finetuned))
    merge_folders(request, {role: target}, work=MergeWork(allow_unrelated=True, **work))
    return {name: tensor for file in target.glob("*.safetensors") for name, tensor in load_file(file).items()}


def read_model(name: str) -> dict[str, torch.Tensor]:
    folder = folder_of(name)
    return {name: tensor.float() for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_agrees(case: dict[str, Any], found: dict[str, torch.Tensor], rounding: float = 0.0) -> None:
    """Every tensor is within the case's tolerance of the recorded one, plus a share of its largest value."""
    expected = load_file(GOLDEN / case["expected"])
    ambiguous = load_file(GOLDEN / case["ambiguous"]) if "ambiguous" in case else {}
    base = read_model(case["base"]) if case.get("base") else None
    relative_to_value = base is None or case["tolerance"].get("relative_to") == "value"
    for name, wanted in expected.items():
        compared = ambiguous[name] == 0 if name in ambiguous else torch.ones_like(wanted, dtype=torch.bool)
        difference = (found[name].double() - wanted.double()).abs()[compared]
        if not difference.numel():
            continue
        scale = wanted.abs().max().item()
        if case["tolerance"]["kind"] == "exact":
            allowed = 0.0
        else:
            reach = scale if relative_to_value else (wanted.double() - base[name].double()).abs().max().item()
            allowed = case["tolerance"]["value"] * reach + 2e-7 * scale
        assert difference.max().item() <= allowed + rounding * scale, name


def case_ids(cases: list[dict[str, Any]]) -> list[str]:
    return [case["id"] for case in cases]


THROUGH_THE_COMMAND_LINE = [
    case for case in CASES if is_covered(case) and "masks" not in case and case["method"] != "della_keep_probabilities"
]
GIVEN_MASKS = [case for case in CASES if "masks" in case]
PROBABILITIES = [case for case in CASES if case["method"] == "della_keep_probabilities"]


@pytest.fixture
def case_folders(request, tmp_path) -> dict[str, Any]:
    """A case, whose first fine-tune may have to be changed."""
    case = request.param
    times = case["options"].get("first_delta_times", 1.0)
    if times == 1.0:
        return case
    first, base = folder_of(case["models"][0]), read_model(case["base"])
    changed = tmp_path / "models" / "first"
    shutil.copytree(first, changed)
    for file in changed.glob("*.safetensors"):
        file.unlink()
    from safetensors.torch import save_file

    own = read_model(case["models"][0])
    save_file(
        {name: (base[name] + times * (own[name] - base[name])).contiguous() for name in own},
        changed / "model.safetensors",
        metadata={"format": "pt"},
    )
    (changed / "model.safetensors.index.json").unlink(missing_ok=True)
    return {**case, "models": [str(changed), *case["models"][1:]]}


@pytest.mark.parametrize(
    "case_folders", THROUGH_THE_COMMAND_LINE, ids=case_ids(THROUGH_THE_COMMAND_LINE), indirect=True
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_merge_has_the_recorded_values(case_folders, tmp_path, dtype):
    found = merged(case_folders, tmp_path / "merged", dtype)
    assert_agrees(case_folders, found, rounding=0.0 if dtype == "float32" else 2**-8)


@pytest.mark.parametrize("case", GIVEN_MASKS, ids=case_ids(GIVEN_MASKS))
def test_the_merge_of_recorded_random_masks_has_the_recorded_values(case, tmp_path, monkeypatch):
    """The mask draws what was recorded; everything after the draw is ours."""
    drawn = load_file(GOLDEN / case["masks"])
    mask = "della" if "della" in case["method"] else "dare"
    places = iter_places(case, drawn)

    def keep_recorded(values, place: MaskPlace, **options):
        from model_merging_methods.survivors import keep

        kept = places[place.key].reshape(values.shape)
        rescales = options.get("use_l1_rescale", options.get("rescale") == "l1")
        return keep(values, kept != 0, "l1" if rescales else "none")

    import dataclasses

    recorded = dataclasses.replace(MASKS[mask], formula=keep_recorded, rounds=lambda options: False, in_rows=None)
    monkeypatch.setitem(MASKS, mask, recorded)
    monkeypatch.setattr("model_merging_methods.kernels.arithmetic.masks_in_blocks", lambda mask: False)
    assert_agrees(case, merged(case, tmp_path / "merged"))


def iter_places(case: dict[str, Any], drawn: dict[str, torch.Tensor]) -> dict[int, torch.Tensor]:
    """The recorded masks by the key of their random numbers."""
    from model_merging_methods.merge_request import mask_key

    return {
        mask_key(0, name_of(model), name): drawn[f"{model}/{name}"]
        for model in models_of(case)
        for name in read_model(model)
    }


@pytest.mark.parametrize("case", PROBABILITIES, ids=case_ids(PROBABILITIES))
def test_della_keeps_values_with_the_recorded_probabilities(case):
    (model,) = case["models"]
    own, base, expected = read_model(model), read_model(case["base"]), load_file(GOLDEN / case["expected"])
    for name, wanted in expected.items():
        delta = own[name] - base[name]
        found = keep_probabilities(delta, **case["options"])
        changed = delta != 0
        np.testing.assert_allclose(found[changed], wanted[changed], rtol=case["tolerance"]["value"])
