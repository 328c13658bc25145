"""Merge what a recipe file says: its documents in order, each in a folder, of which only the result's is kept."""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from model_merging_methods.merge_models import MergeWork, merge_models
from model_merging_methods.merge_request import PRETRAINED, RECIPE, MergeRequest, NamedRecipe
from model_merging_methods.recipes.opening import first_parameters, open_recipe
from model_merging_methods.recipes.read_recipes import read_recipes, with_seed
from model_merging_methods.recipes.recipe import Recipe
from model_merging_methods.recipes.references import ModelReference
from utils.errors import UserError
from utils.findings import Findings
from utils.model_folders import find_model_folder

log = logging.getLogger(__name__)
_PLAIN_WORK = MergeWork()
_ITEM_SIZES = {"float32": 4, "float64": 8}


def merge_recipe(
    file: Path,
    target: Path,
    *,
    overwrite: bool = False,
    work: MergeWork = _PLAIN_WORK,
    seed: int | None = None,
    values_per_file: int | None = None,
) -> None:
    """Merge a recipe file into a model folder. `seed` replaces the recipes' own, `values_per_file` the size in bytes at
    which weight files are cut.

    Raises UserError, naming file, line and key, for a recipe that cannot be merged; else like `merge_models`.
    """
    *earlier, result = [recipe if seed is None else with_seed(recipe, seed) for recipe in read_recipes(file)]
    if values_per_file is not None:
        size = _ITEM_SIZES.get(result.out_dtype or result.dtype, 2)
        work = replace(work, largest_shard=values_per_file * size)
    with _scratch_folder(target, earlier) as scratch:
        made: dict[str, Path] = {}
        for recipe in earlier:
            made[recipe.name] = scratch / f"{len(made)}_{_word(recipe.name)}"
            log.info("merging document %s of the recipe", recipe.name)
            request = recipe_request(recipe, made)
            merge_models(request, {RECIPE: made[recipe.name]}, work=work)
        request = recipe_request(result, made, [recipe.document for recipe in earlier])
        merge_models(request, {RECIPE: target}, overwrite=overwrite, work=work)


def recipe_run_name(file: Path) -> str:
    """The name of a recipe's results: the file's, and a hash of its content. Different recipes never share a name."""
    documents = [recipe.document for recipe in read_recipes(file)]
    digest = hashlib.blake2b(json.dumps(documents).encode(), digest_size=4).hexdigest()
    return f"{_word(file.stem)}_{digest}"


@contextmanager
def _scratch_folder(target: Path, documents: Sequence[Recipe]) -> Iterator[Path]:
    """A hidden folder beside `target` for the models of documents, removed at the end. After a kill or Ctrl-C it stays,
    and the next run of the same documents goes on from it."""
    text = json.dumps([[recipe.document, recipe.seed] for recipe in documents], sort_keys=True)
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    scratch = target.absolute().parent / f".{target.name}.documents.{digest}"
    if documents:
        scratch.mkdir(parents=True, exist_ok=True)
    try:
        yield scratch
    except UserError:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    shutil.rmtree(scratch, ignore_errors=True)


def check_recipe(file: Path) -> int:
    """Print every error and warning of a recipe and its models. Returns the exit status: 2 after an error, else 0. The
    models of documents are known only when these are merged, so recipes with several are read, not opened."""
    recipes = read_recipes(file)
    findings = Findings()
    if len(recipes) == 1:
        with ExitStack() as stack:
            findings = open_recipe(recipe_request(recipes[0]), stack)[1]
    for finding in findings.found:
        print(f"{'error' if finding.is_error else 'warning'}: {finding.text}")
    if not findings.found:
        print("no errors and no warnings")
    return 2 if findings.errors else 0


def recipe_request(
    recipe: Recipe, made: Mapping[str, Path] = MappingProxyType({}), earlier: Sequence[Mapping[str, Any]] = ()
) -> MergeRequest:
    """The merge of a recipe; `made` are the folders of documents by name, `earlier` these documents. Models of the hub
    are downloaded."""
    folders: dict[ModelReference, Path] = {}
    adapters: dict[ModelReference, ModelReference] = {}
    for model in recipe.models:
        whole = ModelReference(model.path, model.revision)
        if whole not in folders:
            folders[whole] = made.get(model.path) or find_model_folder(model.path, model.revision)
        if model.lora is not None:
            folders[model] = find_model_folder(model.lora.path, model.lora.revision)
            adapters[model] = whole
    names = {source.model: source.name for one in recipe.slices for source in one.sources if source.name}
    roles = dict(zip(folders, _roles(list(folders), names), strict=True))
    by_role = {roles[model]: folder for model, folder in folders.items()}
    of_adapters = {roles[model]: roles[whole] for model, whole in adapters.items()}
    named = NamedRecipe(recipe, roles, of_adapters, tuple(earlier))
    parameters = first_parameters(named, by_role)
    return MergeRequest(by_role.pop(PRETRAINED), by_role, parameters, named)


def _roles(models: Sequence[ModelReference], names: Mapping[ModelReference, str]) -> list[str]:
    """The roles of models: the first is the pretrained one, the others have their given names or their folders'."""
    roles = [PRETRAINED]
    for model in models[1:]:
        name = names.get(model) or _word(Path(model.lora.path if model.lora else model.path).name)
        taken = sum(role == name or role.startswith(f"{name}.") for role in roles)
        roles.append(f"{name}.{taken + 1}" if taken or name == PRETRAINED else name)
    return roles


def _word(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip(".") or "model"
