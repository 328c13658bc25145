"""Recipes whose keys are the options of `merge`: all that a command line can say.

merging_method_name: mask_merging       # the key that marks this form
pretrained_model: org/base
models: {chat: org/chat, math: org/math}
mask_apply_method: nuslerp
weight_mask_rate: {chat: 0.2, math: 0.3}
seed: 1
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from model_merging_methods.command_line import (
    add_merge_options,
    chosen_roles,
    declared_options,
    merge_parameters,
    requested_merge,
)
from model_merging_methods.merge_parameters import MergeParameters
from model_merging_methods.merge_request import MergeRequest
from model_merging_methods.method import Value
from model_merging_methods.methods import METHODS
from model_merging_methods.recipes.reading import Node, nearest
from utils.command_line import OneLineParser
from utils.errors import UserError
from utils.model_folders import written_place

MARK = "merging_method_name"
_OF_MERGEKIT = {"merge_method": "merging_method_name", "base_model": "pretrained_model"}
_NO_KEYS = ("from_record", "device")  # a record is another whole merge; a device does not define one


@dataclass(frozen=True)
class OptionRecipe:
    """A recipe of options, as the command line stores them. `entries` are its keys."""

    options: argparse.Namespace
    entries: Mapping[str, Node]
    is_random: bool

    def with_seed(self, seed: int) -> "OptionRecipe":
        return replace(self, options=argparse.Namespace(**vars(self.options) | {"seed": seed}))

    def request(self, headers_in: Path | None = None) -> MergeRequest:
        """The merge (see `requested_merge`). Raises UserError, naming the line, for a model that is not found."""
        try:
            return requested_merge(self.options, headers_in)
        except UserError as error:
            nodes = [
                one
                for node in self.entries.values()
                for one in (node.value.values() if isinstance(node.value, dict) else [node])
            ]
            found = [f"{one.place}: {one.name}: " for one in nodes if str(error).startswith(f"{one.value}: ")]
            raise UserError(f"{found[0] if found else ''}{error}") from None


def read_option_recipe(documents: Sequence[Node]) -> OptionRecipe | None:
    """The options that a recipe holds; None for a recipe in mergekit's form.

    Raises UserError, naming file, line and key, for options that the command line would refuse.
    """
    marked = [node.entries()[MARK] for node in documents if MARK in node.entries()]
    if not marked:
        return None
    if len(documents) > 1:
        raise marked[0].error("a recipe of options is alone in its file; move the other documents to other files")
    parser = OneLineParser(allow_abbrev=False)
    add_merge_options(parser)
    defaults = vars(parser.parse_args([]))
    keys = sorted(defaults.keys() - set(_NO_KEYS))
    method = marked[0].text().replace("-", "_")
    for name, node in documents[0].entries().items():
        if name in _OF_MERGEKIT:
            raise node.error(f"is mergekit's key; {MARK} makes this a recipe of options, so write {_OF_MERGEKIT[name]}")
        if name in _NO_KEYS:
            raise node.error("does not define a merge here; give it on the command line")
        if name not in keys:
            raise node.error(f"unknown key; {nearest(name, keys) or _options_of(method)}")
    entries = documents[0].mapping(*keys)
    if "models" in entries and "pretrained_model" not in entries:
        raise UserError(f"{documents[0].place}: pretrained_model: is missing; add the model that models are tuned from")
    for name, node in entries.items():
        _check_form(node, defaults[name] is False or _is_switch(name))
    options = argparse.Namespace(**defaults | {name: _stored(parser, node) for name, node in entries.items()})
    try:
        is_random = merge_parameters(options, chosen_roles(options)).uses_seed
    except UserError as error:
        named = [entries[name] for name in re.findall(r"--(\w+)", str(error)) if name in entries]
        text = re.sub(r"--(\w+)", r"\1", str(error))
        raise UserError(f"{(named or documents)[0].place}: {text}") from None
    return OptionRecipe(options, entries, is_random)


def _options_of(method: str) -> str:
    own = f"{method} takes {', '.join(METHODS[method].options) or 'no options'}; " if method in METHODS else ""
    return f"{own}`python -m model_merging_methods merge --help` lists all keys"


def _is_switch(name: str) -> bool:
    return any(option.type is bool for option in declared_options().get(name, {}).values())


def _check_form(node: Node, is_switch: bool) -> None:
    """Raise UserError unless a switch is true or false, and other values are numbers or texts, alone or in one list or
    mapping."""
    if isinstance(node.value, bool) != is_switch:
        raise node.error("give true or false" if is_switch else f"is {node.plain}; give a number or a text")
    items = (
        node.value.values() if isinstance(node.value, dict) else node.items() if isinstance(node.value, list) else ()
    )
    for item in items:
        if item.value is None or isinstance(item.value, bool | dict | list):
            raise UserError(f"{item.place}: {node.name}: holds {item.plain}; give a number or a text")


def _stored(parser: OneLineParser, node: Node) -> Any:
    """The value that the command line stores for a key's: a list is several words, a mapping a word for each model."""
    value = node.plain
    if isinstance(value, bool):
        return value
    words = [f"{role}={one}" for role, one in value.items()] if isinstance(value, dict) else value
    words = words if isinstance(words, list) else [words]
    try:  # word by word, because a separate word that begins with "-" would be an option
        stored = [getattr(parser.parse_args([f"--{node.name}={word}"]), node.name) for word in words]
    except UserError as error:
        text = str(error).removeprefix(f"argument --{node.name}: ").removesuffix("; see --help")
        raise node.error(f"{text}; correct it") from None
    if stored and isinstance(stored[0], list):
        return [one for [one] in stored]
    if len(stored) != 1:
        raise node.error(f"has {len(stored)} values; give one")
    return stored[0]


def option_recipe(request: MergeRequest, allow_unrelated: bool) -> dict[str, Any]:
    """The recipe of a merge that options define."""
    parameters, roles = request.parameters, list(request.finetuned)
    recipe: dict[str, Any] = {
        MARK: parameters.merging_method_name,
        "pretrained_model": written_place(request.pretrained),
    }
    recipe["models"] = {role: written_place(folder) for role, folder in request.finetuned.items()}
    if parameters.mask is not None:
        recipe |= {"mask_apply_method": parameters.method, "mask_strategy": parameters.mask.strategy}
        recipe["weight_format"] = parameters.mask.weight_format
    recipe |= _declared_options(parameters, roles) | _mixup(parameters)
    recipe |= {"seed": parameters.seed} if parameters.uses_seed else {}
    recipe |= {"dtype": parameters.dtype} if parameters.dtype else {}
    if parameters.exclude_param_names_regex:
        recipe["exclude_param_names_regex"] = list(parameters.exclude_param_names_regex)
    recipe |= {"config_from": parameters.config_from} if parameters.config_from else {}
    return recipe | ({"allow_unrelated": True} if allow_unrelated else {})


def _declared_options(parameters: MergeParameters, roles: list[str]) -> dict[str, Any]:
    """The options of method and mask, without the method's defaults."""
    declared = METHODS[parameters.method].options
    values: Mapping[str, Value] = {
        name: value for name, value in parameters.options if value != declared[name].default
    } | (parameters.mask.values if parameters.mask else {})
    return {
        name: dict(zip(roles, value, strict=True)) if isinstance(value, tuple) else value
        for name, value in values.items()
    }


def _mixup(parameters: MergeParameters) -> dict[str, Any]:
    mixup = parameters.mixup
    if mixup is None:
        return {}
    if mixup.by_layer:
        return {"ratio_by_layer": list(mixup.by_layer)}
    return {"mixup_lambda": list(mixup.ratios)} if mixup.alpha is None else {"mixup": True, "alpha": mixup.alpha}
