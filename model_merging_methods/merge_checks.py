"""What is checked of a merge's models before the long work, and what their values tell."""

import re
from collections.abc import Mapping

import numpy as np

from model_merging_methods.merge_engine import Merge
from model_merging_methods.merging_methods import MERGING_METHODS
from model_merging_methods.model_comparison import ModelComparison
from model_merging_methods.model_comparison import check_related as check_comparison
from utils.errors import UserError


def check_exclusions(merge: Merge) -> None:
    """Raise UserError for a pattern that matches nothing, and where nothing is left to merge."""
    for pattern in merge.parameters.exclude_param_names_regex:
        if not any(re.search(pattern, name) for name in (*merge.models.forms, *merge.models.left_out)):
            raise UserError(f"--exclude_param_names_regex {pattern}: matches no parameter's name; remove it")
    if not merge.merged_names:
        raise UserError("--exclude_param_names_regex: matches every parameter, so nothing is left to merge")


def check_related(merge: Merge) -> None:
    """Raise UserError unless the models' matrices, by a sample, are those of fine-tunes of one backbone: norms and
    biases are much the same in all models."""
    sums = merge.compare_sample()
    matrices = {name: row for name, row in sums.items() if len(merge.models.forms[name].shape) > 1}
    configs = [model.config for model in merge.models.models]
    sample = comparison(merge, matrices or sums, merged=False)
    check_comparison(sample, dict(zip(merge.roles, configs[1:], strict=True)), configs[0])


def comparison(merge: Merge, sums: Mapping[str, np.ndarray], merged: bool = True) -> ModelComparison:
    """What sums over the models tell; `merged`: whether they were masked and trimmed when these were taken."""
    parameters = merge.parameters
    return ModelComparison(
        merge.roles,
        sums,
        parameters.reads_pretrained,
        masks=merged and parameters.mask is not None,
        trims=merged and MERGING_METHODS[parameters.method].trims,
    )
