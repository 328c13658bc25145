"""The options of a merge, from the command line to a request."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from model_merging_methods.merge_parameters import (
    DTYPE_NAMES,
    MASK_MERGING,
    MASK_STRATEGIES,
    METHOD_NAMES,
    WEIGHT_FORMATS,
    Mask,
    MergeParameters,
    Mixup,
)
from model_merging_methods.merge_record import PRETRAINED, MergeRequest, request_from_record
from model_merging_methods.merging_methods import MERGING_METHODS
from model_merging_methods.mixup import draw_interpolation_weights, given_interpolation_weights
from utils.command_line import whole_number
from utils.errors import UserError
from utils.findings import Findings
from utils.model_folders import FINETUNED_MODELS, PRETRAINED_MODEL, find_model_folder, paper_model_folder

log = logging.getLogger(__name__)

# The options that shape a merge. Each is None until given, so that one without effect can be told from a default.
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


def add_merge_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add all options of one merge; returns the group of those that shape it."""
    models = add_model_options(parser)
    models.add_argument("--from_record", type=Path, metavar="FILE", help="make the merge of a merge_record.json again")
    merging = add_method_options(parser)
    merging.add_argument("--scaling_coefficient", type=float, help=_default("scaling_coefficient"))
    merging.add_argument(
        "--param_value_mask_rate", type=float, help=_default("param_value_mask_rate", "trim rate of TIES")
    )
    merging.add_argument("--weight_mask_rate", type=float, help=_default("weight_mask_rate", "drop rate of the mask"))
    merging.add_argument("--mixup", action="store_true", help="M3: interpolate at a ratio ~ Beta(alpha, alpha)")
    merging.add_argument("--alpha", type=float, help=_default("alpha"))
    merging.add_argument(
        "--mixup_lambda",
        type=float,
        nargs="+",
        metavar="X",
        help="M3 at this ratio (of the first model; or one for each, summing to 1)",
    )
    return merging


def add_model_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options that say which models are merged; returns their group."""
    models = parser.add_argument_group("models")
    for role, name in FINETUNED_MODELS.items():
        models.add_argument(f"--merge_{role}", action="store_true", help=f"merge the {role} model ({name})")
    models.add_argument("--models_dir", type=Path, help="where models lie under the paper's names")
    for role in (PRETRAINED, *FINETUNED_MODELS):
        models.add_argument(f"--{role}_model", metavar="PATH_OR_HUB_ID", help=f"another {role} model")
    return models


def add_method_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options that shape a merge, but for its numbers; returns their group."""
    merging = parser.add_argument_group("merging")
    merging.add_argument(
        "--merging_method_name",
        type=_underscored,
        choices=METHOD_NAMES,
        help=_default("merging_method_name", "hyphens are taken too"),
    )
    merging.add_argument(
        "--mask_apply_method",
        type=_underscored,
        choices=tuple(MERGING_METHODS),
        help=_default("mask_apply_method", "what merges the masked models"),
    )
    merging.add_argument("--use_weight_rescale", action="store_true", help="divide what the mask leaves by 1 - rate")
    merging.add_argument("--weight_format", choices=WEIGHT_FORMATS, help=_default("weight_format", "what is masked"))
    merging.add_argument("--mask_strategy", choices=MASK_STRATEGIES, help=_default("mask_strategy"))
    merging.add_argument("--seed", type=whole_number, help=_default("seed", "of the drawn ratio and of random masks"))
    merging.add_argument("--dtype", choices=DTYPE_NAMES, help="of the saved weights (default: the pretrained model's)")
    merging.add_argument(
        "--exclude_param_names_regex",
        nargs="+",
        metavar="REGEX",
        help="leave parameters in whose names one of these is found as the pretrained model has them",
    )
    merging.add_argument(
        "--config_from",
        choices=(PRETRAINED, *FINETUNED_MODELS),
        help="whose config and generation config every merged folder has (default: the pretrained model's config, with "
        "the settings in which all fine-tunes agree; stop tokens and generation config of each task's own model)",
    )
    merging.add_argument(
        "--allow_unrelated", action="store_true", help="merge even models that seem to have different backbones"
    )
    return merging


def chosen_roles(options: argparse.Namespace) -> list[str]:
    """The merged models' roles, in model order."""
    roles = [role for role in FINETUNED_MODELS if getattr(options, f"merge_{role}")]
    if len(roles) < 2:
        raise UserError("give two or three of --merge_instruct, --merge_math, --merge_code: a merge needs two models")
    for role in FINETUNED_MODELS:
        if role not in roles and getattr(options, f"{role}_model") is not None:
            raise UserError(f"--{role}_model has no use without --merge_{role}; add that or leave it out")
    return roles


def merge_parameters(options: argparse.Namespace, roles: Sequence[str]) -> MergeParameters:
    """The merge that the options ask for. Raises UserError for values that make no sense or have no use."""

    def value(name: str):
        given = getattr(options, name)
        return DEFAULTS[name] if given is None else given

    method = value("merging_method_name")
    mask = None
    if method == MASK_MERGING:
        method = value("mask_apply_method")
        mask = Mask(
            value("weight_mask_rate"), options.use_weight_rescale, value("mask_strategy"), value("weight_format")
        )
    mixup = None
    if options.mixup_lambda is not None:
        mixup = Mixup(given_interpolation_weights(options.mixup_lambda, len(roles)))
    elif options.mixup:
        weights = draw_interpolation_weights(value("alpha"), len(roles), value("seed"))
        mixup = Mixup(weights, value("alpha"))
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
            log.info("--seed has no use in this merge: nothing is drawn")
        parameters = replace(parameters, seed=DEFAULTS["seed"])
    parameters.check(len(roles))
    check_options_have_use(options, parameters)
    return parameters


def check_options_have_use(options: argparse.Namespace, parameters: MergeParameters) -> None:
    """Raise UserError for an option that would change nothing, unless its value is the default anyway."""
    without_use = []
    if parameters.mask is None:
        without_use += ["mask_apply_method", "weight_mask_rate", "use_weight_rescale", "weight_format", "mask_strategy"]
    if parameters.method == "average_merging":
        without_use.append("scaling_coefficient")
    if not MERGING_METHODS[parameters.method].trims:
        without_use.append("param_value_mask_rate")
    if parameters.mixup is None or parameters.mixup.alpha is None:
        without_use.append("alpha")
    for name in without_use:
        given = getattr(options, name)
        if given is not None and given is not False and given != DEFAULTS.get(name):
            raise UserError(f"--{name} {given} has no use in this merge ({parameters.method}); leave it out")


def request_of_folders(options: argparse.Namespace, roles: Sequence[str], parameters: MergeParameters) -> MergeRequest:
    """The merge of the models that the options name, by path, hub id or the paper's name."""

    def folder(role: str, name: str) -> Path:
        given = getattr(options, f"{role}_model")
        return paper_model_folder(name, options.models_dir) if given is None else find_model_folder(given)

    if options.models_dir is not None and not options.models_dir.is_dir():
        raise UserError(f"--models_dir {options.models_dir}: no such folder")
    findings, folders = Findings(), {}
    for role, name in {PRETRAINED: PRETRAINED_MODEL, **{role: FINETUNED_MODELS[role] for role in roles}}.items():
        with findings.collect():
            folders[role] = folder(role, name)
    findings.stop_at_errors()
    return MergeRequest(folders.pop(PRETRAINED), folders, parameters)


def recorded_request(options: argparse.Namespace) -> MergeRequest:
    """The merge of `--from_record`, whose models may lie elsewhere now; nothing else of it may be changed."""
    shaping = [
        *DEFAULTS,
        "mixup",
        "mixup_lambda",
        "dtype",
        "use_weight_rescale",
        "models_dir",
        "exclude_param_names_regex",
        "config_from",
    ]
    shaping += [f"merge_{role}" for role in FINETUNED_MODELS]
    for name in shaping:
        given = getattr(options, name)
        if given is not None and given is not False:
            raise UserError(f"--{name} has no use with --from_record, which holds the whole merge; leave it out")
    given = {role: getattr(options, f"{role}_model") for role in (PRETRAINED, *FINETUNED_MODELS)}
    moved = {role: find_model_folder(path) for role, path in given.items() if path is not None}
    return request_from_record(options.from_record, moved)


def _underscored(name: str) -> str:
    return name.replace("-", "_")


def _default(name: str, remark: str = "") -> str:
    return f"{remark}{', ' if remark else ''}default: {DEFAULTS[name]}"
