import argparse
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from model_merging_methods.before_download import check_before_download
from model_merging_methods.masks import MASKS
from model_merging_methods.merge_parameters import (
    DEVICES,
    DTYPE_NAMES,
    MASK_MERGING,
    MASK_STRATEGIES,
    METHOD_NAMES,
    PAPERS_WORDS,
    WEIGHT_FORMATS,
    MergeParameters,
    mask_name,
    mask_of,
    parameters_of,
)
from model_merging_methods.merge_record import request_from_record
from model_merging_methods.merge_request import PRETRAINED, MergeRequest
from model_merging_methods.method import Method, Option, Value
from model_merging_methods.methods import METHODS
from model_merging_methods.mixup import Mixup, draw_ratios, given_ratios, ratios_by_layer
from utils.command_line import whole_number
from utils.errors import UserError
from utils.findings import Findings
from utils.model_folders import FINETUNED_MODELS, PRETRAINED_MODEL, find_model_folder, paper_model_folder

log = logging.getLogger(__name__)

# The options that define a merge, besides those of methods and masks. Each is None until given, to distinguish an
# option without effect from a default.
DEFAULTS = {
    "merging_method_name": MASK_MERGING,
    "mask_apply_method": "average_merging",
    "weight_format": "delta_weight",
    "mask_strategy": "random",
    "alpha": 0.5,
    "seed": 0,
}
_MASK_OPTIONS = ("mask_apply_method", "weight_format", "mask_strategy")
_OTHER_OPTIONS = ("mixup", "mixup_lambda", "ratio_by_layer", "dtype", "exclude_param_names_regex", "config_from")


def declared_options() -> dict[str, dict[str, Option]]:
    """The options of all methods and masks: by name, and by the name of the method or mask."""
    options: dict[str, dict[str, Option]] = {}
    for owner, declared in (*MASKS.items(), *METHODS.items()):
        for name, option in declared.options.items():
            options.setdefault(name, {})[owner] = option
    return options


def add_merge_options(parser: argparse.ArgumentParser) -> None:
    """Add all options of one merge."""
    models = add_model_options(parser)
    models.add_argument("--from_record", type=Path, metavar="FILE", help="repeat the merge of a merge_record.json")
    merging = add_method_options(parser)
    merging.add_argument("--mixup", action="store_true", help="M3: draw the ratio from Beta(alpha, alpha)")
    _add(merging, "alpha", "α of this distribution", type=float)
    merging.add_argument(
        "--mixup_lambda",
        type=float,
        nargs="+",
        metavar="X",
        help="M3 with a given ratio for the first model, or one ratio per model, summing to 1",
    )
    merging.add_argument(
        "--ratio_by_layer",
        type=float,
        nargs="+",
        metavar="X",
        help="M3 with ratios of the first of two models that change linearly from the first layer to the last: two "
        "points or more",
    )
    merging.add_argument("--device", choices=DEVICES, help="device of the arithmetic (default: cpu)")
    add_declared_options(parser, declared_options())


def add_model_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options that choose the merged models; returns their group."""
    models = parser.add_argument_group("models")
    for role, name in FINETUNED_MODELS.items():
        models.add_argument(f"--merge_{role}", action="store_true", help=f"merge the {role} model ({name})")
    models.add_argument(
        "--models", nargs="+", metavar="NAME=PATH_OR_HUB_ID", help="fine-tunes to merge, under names of your choice"
    )
    models.add_argument("--models_dir", type=Path, help="folder of models with the paper's names (default: .)")
    for role in (PRETRAINED, *FINETUNED_MODELS):
        models.add_argument(f"--{role}_model", metavar="PATH_OR_HUB_ID", help=f"another {role} model")
    return models


def add_method_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options that define a merge except those of methods and masks; returns their group."""
    merging = parser.add_argument_group("merging")
    name = {"type": _underscored, "metavar": "NAME"}
    _add(merging, "merging_method_name", "merging method; hyphens also work", choices=METHOD_NAMES, **name)
    _add(merging, "mask_apply_method", "method for masked models", choices=tuple(METHODS), **name)
    _add(merging, "weight_format", "the values to mask", choices=WEIGHT_FORMATS)
    _add(merging, "mask_strategy", "the mask; random is dare", choices=MASK_STRATEGIES, type=_papers_word)
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
        metavar="NAME",
        help="use the config and generation config of this model (default: the pretrained model's config, with the "
        "settings on which all fine-tunes agree; stop tokens and generation config of each task's model)",
    )
    merging.add_argument("--allow_unrelated", action="store_true", help="merge models of seemingly different backbones")
    return merging


def add_declared_options(
    parser: argparse.ArgumentParser, options: Mapping[str, Mapping[str, Option]], takes_several: bool = False
) -> None:
    """Add options of methods and masks; with `takes_several`, each numeric one takes several numbers, as text."""
    several = ". Numbers: several values, or a range low:high" if takes_several else ""
    group = parser.add_argument_group(
        "options of methods and masks",
        f"`python -m model_merging_methods methods NAME` describes those of one method or mask{several}",
    )
    for name, by_owner in options.items():
        option, owners = next(iter(by_owner.values())), list(by_owner)
        of = f"{len(owners)} methods" if len(owners) > 4 else ", ".join(owners)
        defaults = {str(one.default) for one in by_owner.values() if one.default is not None}
        default = f"; default: {defaults.pop()}" if len(defaults) == 1 else ""
        text = f"{option.about.text} ({of}{default})".replace("%", "%%")
        if option.type is bool:
            group.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=text)
        elif takes_models(name, by_owner):
            group.add_argument(f"--{name}", nargs="+", metavar="[NAME=]X", help=text)
        elif takes_several and option.type is not str:
            group.add_argument(f"--{name}", nargs="+", metavar="X", help=text)
        else:
            choices = sorted({choice for one in by_owner.values() for choice in one.about.choices}) or None
            group.add_argument(f"--{name}", type=option.type, choices=choices, help=text)


def takes_models(name: str, by_owner: Mapping[str, Option]) -> bool:
    """Whether an option may be given by model: NAME=0.3. Task arithmetic's scaling coefficient may, and is then
    each model's weight."""
    return name == "scaling_coefficient" or any(option.is_per_model for option in by_owner.values())


def chosen_roles(options: argparse.Namespace) -> list[str]:
    """The merged models' names, in model order. Raises UserError if no models are chosen, or the options contradict."""
    roles = [role for role in FINETUNED_MODELS if getattr(options, f"merge_{role}")]
    if options.models is not None:
        if roles:
            raise UserError(f"--merge_{roles[0]}: the models are those of --models; name this one there, or remove it")
        roles = list(_named_models(options.models))
    if not roles:
        raise UserError(
            "give the models to merge: --merge_instruct, --merge_math, --merge_code, or --models NAME=PATH ..."
        )
    for role in FINETUNED_MODELS:
        if getattr(options, f"{role}_model") is None:
            continue
        if options.models is not None:
            raise UserError(f"--{role}_model has no effect with --models; remove it")
        if role not in roles:
            raise UserError(f"--{role}_model has no effect without --merge_{role}; add that or remove it")
    return roles


def _named_models(given: Sequence[str]) -> dict[str, str]:
    """The models of `--models` by name: NAME=PATH_OR_HUB_ID each."""
    models: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise UserError(f"--models {text}: give NAME=PATH_OR_HUB_ID")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name == PRETRAINED:
            raise UserError(f"--models {text}: {name!r} cannot name a model; use letters, digits, '.', '_' and '-'")
        if name in models:
            raise UserError(f"--models {text}: the name {name} is given twice; choose another")
        models[name] = path
    return models


def chosen_method(options: argparse.Namespace) -> tuple[str, str | None]:
    """The names of the method and of the mask; None without a mask."""
    name = options.merging_method_name or DEFAULTS["merging_method_name"]
    if name != MASK_MERGING:
        return name, None
    mask = options.mask_strategy or DEFAULTS["mask_strategy"]
    return options.mask_apply_method or DEFAULTS["mask_apply_method"], mask_name(mask)


def merge_parameters(options: argparse.Namespace, roles: Sequence[str]) -> MergeParameters:
    """The parameters from the options. Raises UserError for values that make no sense or have no effect."""

    def value(name: str):
        given = getattr(options, name)
        return DEFAULTS[name] if given is None else given

    (method, mask), mixup = chosen_method(options), None
    given = _given_options(options)
    own, of_mask = _split_options(given, METHODS[method], mask, roles)
    if options.ratio_by_layer is not None:
        if options.mixup or options.mixup_lambda is not None:
            raise UserError("--ratio_by_layer: gives M3's ratios, and so do --mixup and --mixup_lambda; keep one")
        mixup = ratios_by_layer(options.ratio_by_layer, len(roles))
    elif options.mixup_lambda is not None:
        mixup = Mixup(given_ratios(options.mixup_lambda, len(roles)))
    elif options.mixup:
        mixup = Mixup(draw_ratios(value("alpha"), len(roles), value("seed")), value("alpha"))
    if mixup is not None and "weight" in own:
        name = "--scaling_coefficient for each model" if options.weight is None else "--weight"
        raise UserError(f"{name} has no effect with M3's ratios, which replace it; remove one of them")
    parameters = parameters_of(
        method,
        mask=None if mask is None else mask_of(mask, weight_format=value("weight_format"), **of_mask),
        mixup=mixup,
        seed=value("seed"),
        dtype=options.dtype,
        exclude_param_names_regex=tuple(options.exclude_param_names_regex or ()),
        config_from=options.config_from,
        **own,
    )
    if options.config_from not in (None, PRETRAINED, *roles):
        raise UserError(f"--config_from {options.config_from}: choose one of {', '.join((PRETRAINED, *roles))}")
    if not parameters.uses_seed:
        if options.seed is not None:
            log.info("--seed has no effect in this merge: nothing is drawn")
        parameters = replace(parameters, seed=DEFAULTS["seed"])
    parameters.check(len(roles))
    _check_effects(options, parameters)
    return parameters


def _given_options(options: argparse.Namespace) -> dict[str, Value | list[str]]:
    """The options of methods and masks that the command line gives."""
    given = {name: getattr(options, name, None) for name in declared_options()}
    return {name: value for name, value in given.items() if value is not None}


def _split_options(
    given: Mapping[str, Value | list[str]], method: Method, mask: str | None, roles: Sequence[str]
) -> tuple[dict[str, Value], dict[str, Value]]:
    """The given options of the method and of the mask; one that both have is the mask's.

    Raises UserError for an option of neither, unless it repeats the default of others.
    """
    of_method, of_mask = {}, {}
    mask_options = {} if mask is None else MASKS[mask].options
    for name, value in given.items():
        if name in mask_options:
            option = mask_options[name]
            of_mask[name] = _value_for(name, value, option, roles, option.is_per_model)
        elif name in method.options:
            option = method.options[name]
            target = option_by_model(option, method)
            numbers = _value_for(name, value, option, roles, target is not None)
            is_weight = isinstance(numbers, tuple) and target != name
            if is_weight and target in given:
                raise UserError(f"--{name} {' '.join(value)}: gives weights, and so does --weight; keep one")
            of_method[target if is_weight else name] = numbers
        else:
            _check_repeats_default(name, value, method, mask)
    return of_method, of_mask


def option_by_model(option: Option, method: Method) -> str | None:
    """The option that an option given by model sets: itself, or `weight` for a scaling coefficient. None: it takes one
    number for all models."""
    if option.is_per_model:
        return option.name
    return "weight" if option.name == "scaling_coefficient" and "weight" in method.options else None


def _value_for(name: str, value: Value | list[str], option: Option, roles: Sequence[str], by_model: bool) -> Value:
    """An option's value: a number, or one number for each model if it is given as NAME=X. Models without one have the
    option's default. Raises UserError if it has none."""
    if not isinstance(value, list):
        return value
    words = words_by_model(name, value, roles, by_model)
    for role, given in words.items():
        if len(given) > 1:
            raise UserError(f"--{name} {' '.join(value)}: {role} is given twice")
    numbers = {role: _number(name, number, option) for role, [number] in words.items()}
    if "" in numbers:
        return numbers[""]
    left_out = [role for role in roles if role not in numbers]
    if option.default is None and left_out:
        raise UserError(f"--{name} {' '.join(value)}: has no default; add {left_out[0]}=X")
    return tuple(numbers.get(role, option.default) for role in roles)


def words_by_model(name: str, words: Sequence[str], roles: Sequence[str], by_model: bool) -> dict[str, list[str]]:
    """The X of an option's words NAME=X, by model; of a single word X under "". Raises UserError for other words."""
    found: dict[str, list[str]] = {}
    for text in words:
        role, equals, number = text.rpartition("=")
        if not equals and len(words) > 1:
            raise UserError(f"--{name} {' '.join(words)}: give one number, or NAME=X for models")
        if equals and not by_model:
            raise UserError(f"--{name} {text}: takes one number for all models")
        if equals and role not in roles:
            raise UserError(f"--{name} {text}: no model named {role} is merged; choose one of {', '.join(roles)}")
        found.setdefault(role, []).append(number)
    return found


def _number(name: str, text: str, option: Option) -> float:
    try:
        number = option.type(text)
    except ValueError:
        raise UserError(f"--{name} {text}: give {option.range}") from None
    option.check(number)  # here, where the option has the name that the user gave
    return number


def _check_repeats_default(name: str, value: Value | list[str], method: Method, mask: str | None) -> None:
    """Raise UserError for an option that would change nothing, unless it repeats its default."""
    by_owner = declared_options()[name]
    text = " ".join(value) if isinstance(value, list) else str(value)
    defaults = [str(option.default) for option in by_owner.values() if option.default is not None]
    if text in defaults and not isinstance(value, bool):
        return
    only_masks = by_owner.keys() <= MASKS.keys()
    if only_masks and mask is None:
        reason = f" without --merging_method_name {MASK_MERGING}"
    elif only_masks:
        reason = f" and --mask_strategy {PAPERS_WORDS.get(mask, mask)}"
    else:
        reason = ""
    raise UserError(f"--{name} {text} has no effect on {method.name}{reason}; remove it")


def request_of_folders(
    options: argparse.Namespace, roles: Sequence[str], parameters: MergeParameters, headers_in: Path | None = None
) -> MergeRequest:
    """The merge of the models that the options name, by path, hub id or the paper's name. Models of the hub are
    downloaded, or only their headers (see `find_model_folder`)."""
    if options.models_dir is not None and not options.models_dir.is_dir():
        raise UserError(f"--models_dir {options.models_dir}: no such folder")
    findings, folders = Findings(), {}
    for role, given, name in _model_places(options, roles):
        with findings.collect():
            if given:
                folders[role] = find_model_folder(given, headers_in=headers_in)
            else:
                folders[role] = paper_model_folder(name, options.models_dir, headers_in)
    findings.stop_at_errors()
    return MergeRequest(folders.pop(PRETRAINED), folders, parameters)


def given_models(options: argparse.Namespace, roles: Sequence[str]) -> dict[str, str | None]:
    """The path or hub id that the options give for each model, by name; None for a model found by the paper's name."""
    return {role: given for role, given, _ in _model_places(options, roles)}


def _model_places(options: argparse.Namespace, roles: Sequence[str]) -> Iterator[tuple[str, str | None, str | None]]:
    """For each model its role, the given path or hub id, and the paper's name."""
    yield PRETRAINED, options.pretrained_model, PRETRAINED_MODEL
    named = _named_models(options.models or ())
    for role in roles:
        yield role, named.get(role) or getattr(options, f"{role}_model", None), FINETUNED_MODELS.get(role)


def check_nothing_else(options: argparse.Namespace, alone: str, more: Sequence[str] = ()) -> None:
    """Raise UserError for options that define a merge beside one that holds the whole merge, such as --from_record."""
    roles = [f"merge_{role}" for role in FINETUNED_MODELS]
    for name in (*DEFAULTS, *declared_options(), *_OTHER_OPTIONS, "models_dir", *roles, *more):
        if getattr(options, name) not in (None, False):
            raise UserError(f"--{name} has no effect with {alone}, which holds the whole merge; remove it")


def recorded_request(options: argparse.Namespace, headers_in: Path | None = None) -> MergeRequest:
    """The merge of `--from_record`, whose models may have moved since. Nothing else about it can change."""
    check_nothing_else(options, "--from_record")
    given = {role: getattr(options, f"{role}_model") for role in (PRETRAINED, *FINETUNED_MODELS)}
    given |= _named_models(options.models or ())
    moved = {role: find_model_folder(path, headers_in=headers_in) for role, path in given.items() if path is not None}
    return request_from_record(options.from_record, moved)


def requested_merge(options: argparse.Namespace, headers_in: Path | None = None) -> MergeRequest:
    """The merge from the options, of the models that they or a record name. Models of the hub are checked and then
    downloaded, or only their headers (see `find_model_folder`)."""
    if options.from_record is not None:
        return recorded_request(options, headers_in)
    roles = chosen_roles(options)
    parameters = merge_parameters(options, roles)
    if headers_in is None:
        check_before_download(lambda place: request_of_folders(options, roles, parameters, place))
    return request_of_folders(options, roles, parameters, headers_in)


def _check_effects(options: argparse.Namespace, parameters: MergeParameters) -> None:
    """Raise UserError for an option that would change nothing, unless it repeats the default."""
    without_effect = {}
    if parameters.mask is None:
        without_effect |= dict.fromkeys(_MASK_OPTIONS, " without --merging_method_name mask_merging")
    if parameters.mixup is None:
        without_effect["alpha"] = " without --mixup"
    elif parameters.mixup.alpha is None:
        given = "ratio_by_layer" if parameters.mixup.by_layer else "mixup_lambda"
        without_effect["alpha"] = f" with --{given}"
    for name, reason in without_effect.items():
        given = getattr(options, name)
        if given is not None and given != DEFAULTS.get(name):
            raise UserError(f"--{name} {given} has no effect on {parameters.method}{reason}; remove it")


def _add(group: argparse._ArgumentGroup, name: str, meaning: str, **settings) -> None:
    group.add_argument(f"--{name}", help=f"{meaning} (default: {DEFAULTS[name]})", **settings)


def _papers_word(mask: str) -> str:
    return PAPERS_WORDS.get(mask, mask)


def _underscored(name: str) -> str:
    return name.replace("-", "_")
