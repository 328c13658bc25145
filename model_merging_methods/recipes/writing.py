"""The recipe of a merge, as YAML: running it makes the same bytes."""

import argparse
from pathlib import Path
from typing import Any

import yaml

from model_merging_methods.before_download import request_of_headers
from model_merging_methods.command_line import requested_merge
from model_merging_methods.merge_request import PRETRAINED, MergeRequest
from model_merging_methods.recipes.option_recipe import option_recipe
from model_merging_methods.recipes.recipe import with_models
from utils.model_folders import written_place


def print_recipe(options: argparse.Namespace) -> None:
    """Print the recipe of the merge that options define. No weights are downloaded."""
    with request_of_headers(lambda headers_in: requested_merge(options, headers_in)) as (request, _):
        print(_recipe_text(request, options.allow_unrelated), end="")


def _recipe_text(request: MergeRequest, allow_unrelated: bool) -> str:
    """A merge's recipe: the documents that it was read from, or the options that define it."""
    made_from_options = request.recipe is None
    documents = [option_recipe(request, allow_unrelated)] if made_from_options else _documents(request).values()
    return "---\n".join(yaml.safe_dump(one, sort_keys=False, allow_unicode=True) for one in documents)


def _documents(request: MergeRequest) -> dict[str | None, dict[str, Any]]:
    """The documents of a recipe by name, the result last, with the places of models and, for random masks, their names
    here."""
    found: dict[str | None, dict[str, Any]] = {}
    for made in request.made.values():
        found |= _documents(made)
    named = request.recipe
    places = {role: _written(path) for role, path in request.inputs.items()}
    for role, base in named.adapters.items():
        places[role] = {"model": places[base], "lora": places[role]}
    document = with_models(_with_names(named.fields["document"]), places)
    found[named.recipe.name] = document | ({"seed": named.recipe.seed} if named.recipe.is_random else {})
    return found


def _written(path: Path) -> str | dict[str, str]:
    """A folder as a recipe's model: as a mapping if its text would read as a revision or an adapter."""
    place = written_place(path)
    return {"path": place} if place == str(path) and set("@+") & set(place) else place


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
