"""The options of a merge, from the command line to a request."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from model_merging_methods.merge_record import request_from_record
from model_merging_methods.merge_request import (
    DEVICES,
    DTYPE_NAMES,
    MASK_MERGING,
    MASK_STRATEGIES,
    METHOD_NAMES,
    PRETRAINED,
    WEIGHT_FORMATS,
    Mask,
    MergeParameters,
    MergeRequest,
    Mixup,
    draw_ratios,
    given_ratios,
)
from model_merging_methods.merging_methods import MERGING_METHODS
from utils.command_line import whole_number
from utils.errors import UserError
from utils.findings import Findings
from utils.model_folders import FINETUNED_MODELS, PRETRAINED_MODEL, find_model_folder, paper_model_folder

log = logging.getLogger(__name__)

# The options that define a merge. Each is None until given, to distinguish an option without effect from a default.
DEFAULTS = {
    "merging_method_name": MASK_MERGING,
    "scaling_coefficient": 1.0,
    "param_value_mask_rate": 0.5,
    "mask_apply_method": "average_merging",
    "weight_mask_rate": 0.2,
    "weight_format": "delta_weight",
    "mask_strategy": "random",
    "alpha": 0.5,
    "seed": 0,
}
_MASK_OPTIONS = ("mask_apply_method", "weight_mask_rate", "use_weight_rescale", "weight_format", "mask_strategy")
_OTHER_OPTIONS = ("mixup", "mixup_lambda", "dtype", "exclude_param_names_regex", "config_from", "use_weight_rescale")


def add_merge_options(parser: argparse.ArgumentParser) -> None:
    """Add all options of one merge."""
    models = add_model_options(parser)
    models.add_argument("--from_record", type=Path, metavar="FILE", help="repeat the merge of a merge_record.json")
    merging = add_method_options(parser)
    _add(merging, "scaling_coefficient", "scaling factor of the task vectors", type=float)
    _add(merging, "param_value_mask_rate", "trim rate of TIES, a fraction", type=float)
    _add(merging, "weight_mask_rate", "drop rate of the mask, a fraction", type=float)
    merging.add_argument("--mixup", action="store_true", help="M3: draw the ratio from Beta(alpha, alpha)")
    _add(merging, "alpha", "α of this distribution", type=float)
    merging.add_argument(
        "--mixup_lambda",
        type=float,
        nargs="+",
        metavar="X",
        help="M3 with a given ratio for the first model, or one ratio per model, summing to 1",
    )
    merging.add_argument("--device", choices=DEVICES, help="device of the arithmetic (default: cpu)")


def add_model_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options that choose the merged models; returns their group."""
    models = parser.add_argument_group("models")
    for role, name in FINETUNED_MODELS.items():
        models.add_argument(f"--merge_{role}", action="store_true", help=f"merge the {role} model ({name})")
    models.add_argument("--models_dir", type=Path, help="folder of models with the paper's names (default: .)")
    for role in (PRETRAINED, *FINETUNED_MODELS):
        models.add_argument(f"--{role}_model", metavar="PATH_OR_HUB_ID", help=f"another {role} model")
    return models


def add_method_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options that define a merge except its numbers; returns their group."""
    merging = parser.add_argument_group("merging")
    _add(merging, "merging_method_name", "merging method; hyphens also work", type=_underscored, choices=METHOD_NAMES)
    _add(merging, "mask_apply_method", "method for masked models", type=_underscored, choices=tuple(MERGING_METHODS))
    merging.add_argument("--use_weight_rescale", action="store_true", help="divide unmasked values by 1 - drop rate")
    _add(merging, "weight_format", "the values to mask", choices=WEIGHT_FORMATS)
    _add(merging, "mask_strategy", "which values are dropped", choices=MASK_STRATEGIES)
    _add(merging, "seed", "seed of the drawn ratio and of random masks", type=whole_number)
    merging.add_argument(
        "--dtype", choices=DTYPE_NAMES, help="dtype of the saved weights (default: the pretrained model's)"
    )
    merging.add_argument(
        "--exclude_param_names_regex",
        nargs="+",
        metavar="REGEX",
        help="keep the pretrained model's values of parameters whose names match",
    )
    merging.add_argument(
        "--config_from",
        choices=(PRETRAINED, *FINETUNED_MODELS),
        help="use the config and generation config of this model (default: the pretrained model's config, with the "
        "settings on which all fine-tunes agree; stop tokens and generation config of each task's model)",
    )
    merging.add_argument("--allow_unrelated", action="store_true", help="merge models of seemingly different backbones")
    return merging


def chosen_roles(options: argparse.Namespace) -> list[str]:
    """The merged models' roles, in model order."""
    roles = [role for role in FINETUNED_MODELS if getattr(options, f"merge_{role}")]
    if len(roles) < 2:
        raise UserError("give two or three of --merge_instruct, --merge_math, --merge_code: a merge needs two models")
    for role in FINETUNED_MODELS:
        if role not in roles and getattr(options, f"{role}_model") is not None:
            raise UserError(f"--{role}_model has no effect without --merge_{role}; add that or remove it")
    return roles


def merge_parameters(options: argparse.Namespace, roles: Sequence[str]) -> MergeParameters:
    """The parameters from the options. Raises UserError for values that make no sense or have no effect."""

    def value(name: str):
        given = getattr(options, name)
        return DEFAULTS[name] if given is None else given

    method, mask, mixup = value("merging_method_name"), None, None
    if method == MASK_MERGING:
        method = value("mask_apply_method")
        mask = Mask(
            value("weight_mask_rate"), options.use_weight_rescale, value("mask_strategy"), value("weight_format")
        )
    if options.mixup_lambda is not None:
        mixup = Mixup(given_ratios(options.mixup_lambda, len(roles)))
    elif options.mixup:
        mixup = Mixup(draw_ratios(value("alpha"), len(roles), value("seed")), value("alpha"))
    parameters = MergeParameters(
        method,
        value("scaling_coefficient"),
        value("param_value_mask_rate"),
        mask,
        mixup,
        value("seed"),
        options.dtype,
        tuple(options.exclude_param_names_regex or ()),
        options.config_from,
    )
    if options.config_from not in (None, PRETRAINED, *roles):
        raise UserError(f"--config_from {options.config_from} is not merged; add --merge_{options.config_from}")
    if not parameters.uses_seed:
        if options.seed is not None:
            log.info("--seed has no effect in this merge: nothing is drawn")
        parameters = replace(parameters, seed=DEFAULTS["seed"])
    parameters.check(len(roles))
    _check_effects(options, parameters)
    return parameters


def request_of_folders(options: argparse.Namespace, roles: Sequence[str], parameters: MergeParameters) -> MergeRequest:
    """The merge of the models that the options name, by path, hub id or the paper's name."""
    if options.models_dir is not None and not options.models_dir.is_dir():
        raise UserError(f"--models_dir {options.models_dir}: no such folder")
    findings, folders = Findings(), {}
    for role, name in {PRETRAINED: PRETRAINED_MODEL, **{role: FINETUNED_MODELS[role] for role in roles}}.items():
        given = getattr(options, f"{role}_model")
        with findings.collect():
            folders[role] = find_model_folder(given) if given else paper_model_folder(name, options.models_dir)
    findings.stop_at_errors()
    return MergeRequest(folders.pop(PRETRAINED), folders, parameters)


def recorded_request(options: argparse.Namespace) -> MergeRequest:
    """The merge of `--from_record`, whose models may have moved since. Nothing else about it can change."""
    for name in (*DEFAULTS, *_OTHER_OPTIONS, "models_dir", *(f"merge_{role}" for role in FINETUNED_MODELS)):
        if getattr(options, name) not in (None, False):
            raise UserError(f"--{name} has no effect with --from_record, which holds the whole merge; remove it")
    given = {role: getattr(options, f"{role}_model") for role in (PRETRAINED, *FINETUNED_MODELS)}
    moved = {role: find_model_folder(path) for role, path in given.items() if path is not None}
    return request_from_record(options.from_record, moved)


def requested_merge(options: argparse.Namespace) -> MergeRequest:
    """The merge from the options, of the models that they or a record name."""
    if options.from_record is not None:
        return recorded_request(options)
    roles = chosen_roles(options)
    return request_of_folders(options, roles, merge_parameters(options, roles))


def _check_effects(options: argparse.Namespace, parameters: MergeParameters) -> None:
    """Raise UserError for an option that would change nothing, unless it repeats the default."""
    without_effect = {}
    if parameters.mask is None:
        without_effect |= dict.fromkeys(_MASK_OPTIONS, " without --merging_method_name mask_merging")
    if parameters.method == "average_merging":
        without_effect["scaling_coefficient"] = ""
    if not MERGING_METHODS[parameters.method].has_trimming:
        without_effect["param_value_mask_rate"] = ""
    if parameters.mixup is None:
        without_effect["alpha"] = " without --mixup"
    elif parameters.mixup.alpha is None:
        without_effect["alpha"] = " with --mixup_lambda"
    for name, reason in without_effect.items():
        given = getattr(options, name)
        if given is not None and given is not False and given != DEFAULTS.get(name):
            raise UserError(f"--{name} {given} has no effect on {parameters.method}{reason}; remove it")


def _add(group: argparse._ArgumentGroup, name: str, meaning: str, **settings) -> None:
    group.add_argument(f"--{name}", help=f"{meaning} (default: {DEFAULTS[name]})", **settings)


def _underscored(name: str) -> str:
    return name.replace("-", "_")
