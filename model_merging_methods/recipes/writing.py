"""The recipe of a merge that command-line options define: running it makes the same weights."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from model_merging_methods.checkpoints.checkpoint_folder import CheckpointFolder
from model_merging_methods.kernels.stored_dtypes import LONG_NAMES, is_floating
from model_merging_methods.merge_parameters import MergeParameters
from model_merging_methods.merge_request import PRETRAINED, MergeRequest
from model_merging_methods.method import Value
from model_merging_methods.methods import METHODS
from model_merging_methods.recipes.mergekit_methods import RECIPE_METHODS, Base
from model_merging_methods.recipes.read_recipes import recipe_from_plain
from model_merging_methods.recipes.recipe import with_models
from model_merging_methods.recipes.vocabulary import number_of_rows
from utils.errors import UserError
from utils.weight_files import is_adapter_folder

_NAMES = {"scaling_coefficient": "lambda", "ram_alpha": "alpha"}  # in mergekit's methods
_IMPLIED = ("task_vectors",)  # by a base model


def recipe_text(request: MergeRequest) -> str:
    """A merge's recipe. Raises UserError for a merge that recipes cannot describe."""
    if request.recipe is not None:
        documents = _documents(request)
        return "---\n".join(yaml.safe_dump(one, sort_keys=False, allow_unicode=True) for one in documents.values())
    parameters, models = request.parameters, dict(request.finetuned)
    method = RECIPE_METHODS[parameters.method]
    _check(request)
    shared, own = _settings(parameters, list(models))

    def place(folder: Path) -> str:
        return f"{request.pretrained}+{folder}" if is_adapter_folder(folder) else str(folder)

    if method.base is Base.FIRST:
        base = place(next(iter(models.values())))
    else:
        base = str(request.pretrained) if method.base is not Base.INPUT and _reads_base(parameters) else None
    document: dict[str, Any] = {"merge_method": parameters.method}
    document |= {"base_model": base} if base else {}
    document["models"] = [
        {"model": place(folder), "name": name, **({"parameters": own[name]} if own[name] else {})}
        for name, folder in models.items()
    ]
    document |= {"parameters": shared} if shared else {}
    if parameters.mask is not None:
        document["mask"] = {"name": parameters.mask.name, "weight_format": parameters.mask.weight_format}
    if parameters.mixup is not None:
        mixup = parameters.mixup
        given = {"ratio_by_layer": list(mixup.by_layer)} if mixup.by_layer else {"ratios": list(mixup.ratios)}
        document["mixup"] = given if mixup.alpha is None else {"alpha": mixup.alpha}
    document |= {"seed": parameters.seed} if parameters.uses_seed else {}
    if parameters.exclude_param_names_regex:
        document["exclude_param_names_regex"] = list(parameters.exclude_param_names_regex)
    document["dtype"] = "float32"
    document["out_dtype"] = parameters.dtype or _dtype_of(request.pretrained)
    try:
        recipe_from_plain(document, Path("recipe"))
    except UserError as error:
        raise _refusal(str(error)) from None
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def _check(request: MergeRequest) -> None:
    """Raise UserError for a merge that no recipe means."""
    if request.parameters.config_from is not None:
        raise _refusal("they have no --config_from")
    if request.parameters.exclude_param_names_regex and RECIPE_METHODS[request.parameters.method].base is Base.FIRST:
        raise _refusal(f"excluded parameters of {request.parameters.method} are the first model's there")
    with ExitStack() as stack:
        whole = [folder for folder in request.inputs.values() if not is_adapter_folder(folder)]
        if len({number_of_rows(stack.enter_context(CheckpointFolder(folder))) for folder in whole}) > 1:
            raise _refusal("they give tokens that a model lacks other rows of embeddings")


def _refusal(reason: str) -> UserError:
    return UserError(f"--print_recipe: recipes cannot describe this merge ({reason}); keep the command line")


def _documents(request: MergeRequest) -> dict[str | None, dict[str, Any]]:
    """The documents of a recipe by name, the result last, with the places of models and, for random masks, their names
    here."""
    found: dict[str | None, dict[str, Any]] = {}
    for made in request.made.values():
        found |= _documents(made)
    named = request.recipe
    places = {role: str(path) for role, path in request.inputs.items()}
    places |= {role: f"{places[base]}+{places[role]}" for role, base in named.adapters.items()}
    document = with_models(_with_names(named.fields["document"]), places)
    found[named.recipe.name] = document | ({"seed": named.recipe.seed} if named.recipe.is_random else {})
    return found


def _with_names(value: Any) -> Any:
    """A recipe's plain values, in which every source has the name of its role."""
    if isinstance(value, list):
        return [_with_names(one) for one in value]
    if not isinstance(value, dict):
        return value
    named = {key: _with_names(one) for key, one in value.items()}
    for entries in (named.get("models"), named.get("sources")):
        for entry in entries or ():
            if entry["model"] != PRETRAINED:
                entry["name"] = entry["model"]
    return named


def _reads_base(parameters: MergeParameters) -> bool:
    """Whether the recipe names the base: where θ0 counts, and for methods of our own, for config and tokenizer."""
    return parameters.reads_base or "task_vectors" not in parameters.values


def _settings(parameters: MergeParameters, roles: list[str]) -> tuple[dict[str, Value], dict[str, dict[str, Value]]]:
    """The options of method and mask as recipes name them: shared ones, and those of each model."""
    known = RECIPE_METHODS[parameters.method].parameters
    values = {}
    for option, value in parameters.options:
        name = option if option in known else _NAMES.get(option, option)
        is_default = value == METHODS[parameters.method].options[option].default
        is_replaced = option == "weight" and parameters.mixup is not None
        if option not in _IMPLIED and not is_replaced and (name in known or not is_default):
            values[name] = value
    values |= parameters.mask.values if parameters.mask else {}
    shared: dict[str, Value] = {}
    own: dict[str, dict[str, Value]] = {role: {} for role in roles}
    for name, value in values.items():
        if isinstance(value, tuple):
            for role, one in zip(roles, value, strict=True):
                own[role][name] = one
        else:
            shared[name] = value
    return shared, own


def _dtype_of(folder: Path) -> str:
    """The dtype of a model's first floating-point tensor."""
    with ExitStack() as stack:
        opened = stack.enter_context(CheckpointFolder(folder))
        return next(LONG_NAMES[stored.dtype] for stored in opened.tensors.values() if is_floating(stored.dtype))
