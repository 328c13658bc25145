"""The main job's command line that saves a candidate's merge."""

import shlex
from collections.abc import Mapping
from typing import Any

from model_merging_methods.merge_parameters import MASK_MERGING, MergeParameters
from model_merging_methods.merge_record import PRETRAINED
from model_merging_methods.merging_methods import MERGING_METHODS


def save_command(identity: Mapping[str, Any], parameters: MergeParameters) -> str:
    """A command for a POSIX shell that merges the search's models with these parameters, to the last bit.

    Of the search's identity it takes `roles`, `models`, and what there is of `models_dir` and `allow_unrelated`.
    """
    words = ["python", "merge_llms_instruct_math_code.py"]
    words += [f"--merge_{role}" for role in identity["roles"]]
    for role in (PRETRAINED, *identity["roles"]):
        words += _option(f"{role}_model", identity["models"].get(role))
    words += _option("models_dir", identity.get("models_dir"))
    if identity.get("allow_unrelated"):
        words.append("--allow_unrelated")
    return shlex.join([*words, *_merge_words(parameters), "--merge_only"])


def _merge_words(parameters: MergeParameters) -> list[str]:
    """Only options that have a use in this merge, for the main job refuses others."""
    mask, mixup = parameters.mask, parameters.mixup
    words = _option("merging_method_name", MASK_MERGING if mask else parameters.method)
    if mask:
        words += _option("mask_apply_method", parameters.method)
        words += _option("weight_mask_rate", mask.weight_mask_rate)
        words += ["--use_weight_rescale"] if mask.use_weight_rescale else []
        words += _option("weight_format", mask.weight_format)
        words += _option("mask_strategy", mask.mask_strategy)
    if parameters.method != "average_merging":
        words += _option("scaling_coefficient", parameters.scaling_coefficient)
    if MERGING_METHODS[parameters.method].trims:
        words += _option("param_value_mask_rate", parameters.param_value_mask_rate)
    if mixup:
        ratios = mixup.weights[:1] if len(mixup.weights) == 2 else mixup.weights
        words += ["--mixup_lambda", *map(repr, ratios)]
    if parameters.uses_seed:
        words += _option("seed", parameters.seed)
    words += _option("dtype", parameters.dtype)
    words += _option("config_from", parameters.config_from)
    if parameters.exclude_param_names_regex:
        words += ["--exclude_param_names_regex", *parameters.exclude_param_names_regex]
    return words


def _option(name: str, value: Any) -> list[str]:
    """An option in the words of the command line; none for None. What begins like an option is joined to the name."""
    if value is None:
        return []
    return [f"--{name}={value}"] if str(value).startswith("-") else [f"--{name}", str(value)]
