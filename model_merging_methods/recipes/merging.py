"""Merge what a recipe file says: one document, or several of which later ones use the models of earlier ones."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from model_merging_methods.before_download import check_before_download
from model_merging_methods.merge_folders import MergeWork, merge_folders
from model_merging_methods.merge_request import PRETRAINED, MergeRequest, NamedRecipe
from model_merging_methods.preflight import print_findings
from model_merging_methods.recipes.opening import first_parameters
from model_merging_methods.recipes.option_recipe import OptionRecipe, read_option_recipe
from model_merging_methods.recipes.read_recipes import read_recipes, with_seed
from model_merging_methods.recipes.reading import RecipeSource, read_documents
from model_merging_methods.recipes.recipe import Recipe
from model_merging_methods.recipes.references import ModelReference
from model_merging_methods.recipes.tokenizer import TOKENIZER_KEYWORDS
from utils.errors import UserError
from utils.model_folders import find_model_folder, free_name

_PLAIN_WORK = MergeWork()
AnyRecipe = OptionRecipe | list[Recipe]


def read_recipe(source: RecipeSource) -> AnyRecipe:
    """The options that a recipe holds, or the merges of its documents, the result last.

    Raises UserError, naming file, line and key, for a recipe that makes no sense.
    """
    documents = read_documents(source)
    return read_option_recipe(documents) or read_recipes(documents)


def merge_recipe(
    recipe: AnyRecipe,
    target: Path,
    *,
    overwrite: bool = False,
    work: MergeWork = _PLAIN_WORK,
    seed: int | None = None,
    values_per_file: int | None = None,
) -> None:
    """Merge a recipe into a model folder, which gets the first model's tokenizer if the recipe holds options, else
    the one that the recipe says. `seed` replaces the recipes' own, `values_per_file` the size in bytes at
    which weight files are cut.

    Raises UserError, naming file, line and key, for a recipe that cannot be merged; else like `merge_folders`.
    """
    if isinstance(recipe, OptionRecipe):
        request = (recipe if seed is None else recipe.with_seed(seed)).request()
        work = replace(work, allow_unrelated=recipe.options.allow_unrelated)
    else:
        recipes = recipe if seed is None else [with_seed(one, seed) for one in recipe]
        check_before_download(lambda headers_in: request_of_recipes(recipes, headers_in))
        request = request_of_recipes(recipes)
    if values_per_file is not None:
        work = replace(work, values_per_file=values_per_file)
    merge_folders(request, {request.roles[0]: target.resolve()}, overwrite=overwrite, work=work)


def recipe_run_name(file: Path, recipes: Sequence[Recipe]) -> str:
    """The name of a recipe's results: the file's, and a hash of its content. Different recipes never share a name."""
    documents = [recipe.document for recipe in recipes]
    digest = hashlib.blake2b(json.dumps(documents).encode(), digest_size=4).hexdigest()
    return f"{_word(file.stem)}_{digest}"


def is_random(recipe: AnyRecipe) -> bool:
    """Whether a recipe's result depends on a seed."""
    return recipe.is_random if isinstance(recipe, OptionRecipe) else any(one.is_random for one in recipe)


def check_recipe(recipe: AnyRecipe) -> int:
    """Print every error and warning of a recipe and its models. Returns the exit status: 2 after an error, else 0."""
    if isinstance(recipe, OptionRecipe):
        return print_findings(recipe.request, recipe.options.allow_unrelated)
    return print_findings(lambda headers_in: request_of_recipes(recipe, headers_in), allow_unrelated=True)


def request_of_recipes(recipes: Sequence[Recipe], headers_in: Path | None = None) -> MergeRequest:
    """The merge of the last recipe, with those of the earlier ones that make its models. Models of the hub are
    downloaded, or only their headers (see `find_model_folder`)."""
    made: dict[str, MergeRequest] = {}
    for recipe in recipes:
        request = recipe_request(recipe, made, headers_in)
        made[recipe.name] = request
    return request


def recipe_request(
    recipe: Recipe, made: Mapping[str, MergeRequest] = MappingProxyType({}), headers_in: Path | None = None
) -> MergeRequest:
    """The merge of a recipe; `made` are the merges of earlier documents by name."""
    folders: dict[ModelReference, Path] = {}
    adapters: dict[ModelReference, ModelReference] = {}
    for model in recipe.models:
        whole = ModelReference(model.path, model.revision)
        if whole not in folders:
            folders[whole] = Path(model.path) if model.path in made else _find(recipe, whole, headers_in)
        if model.lora is not None:
            folders[model] = _find(recipe, model.lora, headers_in)
            adapters[model] = whole
    # A role in the place of a tokenizer's source must not read as one of its keywords.
    has_tokenizer = recipe.tokenizer is not None and isinstance(recipe.tokenizer.source, ModelReference)
    reserved = TOKENIZER_KEYWORDS if has_tokenizer else ()
    roles = dict(zip(folders, _roles(list(folders), recipe.given_names, reserved), strict=True))
    by_role = {roles[model]: folder for model, folder in folders.items()}
    of_adapters = {roles[model]: roles[whole] for model, whole in adapters.items()}
    of_documents = {role: made[model.path] for model, role in roles.items() if model.path in made and not model.lora}
    named = NamedRecipe(recipe, roles, of_adapters, of_documents)
    request = MergeRequest(by_role.pop(PRETRAINED), by_role, None, named)
    return replace(request, parameters=first_parameters(named, request.inputs)) if request.has_headers else request


def _find(recipe: Recipe, model: ModelReference, headers_in: Path | None = None) -> Path:
    sources = [source for one in recipe.slices for source in one.sources]
    place = next((source.place for source in sources if model in (source.model, source.model.lora)), recipe.place)
    try:
        return find_model_folder(model.path, model.revision, headers_in)
    except UserError as error:
        raise UserError(f"{place}: model: {error}") from None


def _roles(models: Sequence[ModelReference], names: Mapping[ModelReference, str], reserved: Sequence[str]) -> list[str]:
    """The roles of models: the first is the pretrained one, the others have their given names or their folders', with a
    number if these are taken or reserved."""
    roles = [PRETRAINED]
    for model in models[1:]:
        name = names.get(model) or _word(Path(model.lora.path if model.lora else model.path).name)
        roles.append(free_name(name, (*roles, *reserved)))
    return roles


def _word(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip(".") or "model"
