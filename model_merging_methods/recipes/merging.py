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

from model_merging_methods.before_download import check_before_download
from model_merging_methods.merge_models import MergeWork, merge_models
from model_merging_methods.merge_record import RECORD_FILE, read_record
from model_merging_methods.merge_request import PRETRAINED, RECIPE, MergeRequest, NamedRecipe
from model_merging_methods.recipes.opening import first_parameters, open_recipe
from model_merging_methods.recipes.read_recipes import read_recipes, with_seed
from model_merging_methods.recipes.recipe import Recipe
from model_merging_methods.recipes.references import ModelReference
from utils.errors import UserError
from utils.findings import Findings
from utils.model_folders import find_model_folder, free_name

log = logging.getLogger(__name__)
_PLAIN_WORK = MergeWork()


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
    target = target.resolve()
    documents = {recipe.name for recipe in earlier}
    for recipe in (*earlier, result):
        if not any(model.path in documents for model in recipe.models):
            check_before_download(lambda headers_in, of=recipe: recipe_request(of, headers_in=headers_in))
    check_models([*earlier, result])
    if earlier and not overwrite:
        _check_free(target, earlier)
    if values_per_file is not None:
        work = replace(work, values_per_file=values_per_file)
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


def is_random(file: Path) -> bool:
    """Whether a recipe's result depends on a seed."""
    return any(recipe.is_random for recipe in read_recipes(file))


def check_models(recipes: Sequence[Recipe]) -> None:
    """Raise UserError, naming line and key, for a model of any document that is not found."""
    documents = {recipe.name for recipe in recipes}
    for recipe in recipes:
        for model in recipe.models:
            for part in (model, *([model.lora] if model.lora else [])):
                if part.path not in documents:
                    _find(recipe, part)


def _check_free(target: Path, earlier: Sequence[Recipe]) -> None:
    """Raise UserError, before documents are merged, if the target holds the result of anything else."""
    if target.exists():
        record = read_record(target / RECORD_FILE) if (target / RECORD_FILE).exists() else {}
        if record.get("recipe", {}).get("earlier_documents") != [recipe.document for recipe in earlier]:
            raise UserError(f"{target}: holds the results of another run; choose another folder, or add --overwrite")


def check_recipe(file: Path) -> int:
    """Print every error and warning of a recipe and its models. Returns the exit status: 2 after an error, else 0. What
    documents make is known only when they are merged, so recipes that use others are not opened."""
    recipes = read_recipes(file)
    findings = Findings()
    with findings.collect():
        check_models(recipes)
    documents = {recipe.name for recipe in recipes} - {None}
    for recipe in recipes:
        if not findings.errors and not any(model.path in documents for model in recipe.models):
            with ExitStack() as stack:
                findings.found += open_recipe(recipe_request(recipe), stack)[1].found
    for finding in findings.found:
        print(f"{'error' if finding.is_error else 'warning'}: {finding.text}")
    if not findings.found:
        print("no errors and no warnings")
    return 2 if findings.errors else 0


def recipe_request(
    recipe: Recipe,
    made: Mapping[str, Path] = MappingProxyType({}),
    earlier: Sequence[Mapping[str, Any]] = (),
    headers_in: Path | None = None,
) -> MergeRequest:
    """The merge of a recipe; `made` are the folders of documents by name, `earlier` these documents. Models of the hub
    are downloaded, or only their headers (see `find_model_folder`)."""
    folders: dict[ModelReference, Path] = {}
    adapters: dict[ModelReference, ModelReference] = {}
    for model in recipe.models:
        whole = ModelReference(model.path, model.revision)
        if whole not in folders:
            folders[whole] = made.get(model.path) or _find(recipe, whole, headers_in)
        if model.lora is not None:
            folders[model] = _find(recipe, model.lora, headers_in)
            adapters[model] = whole
    names = {source.model: source.name for one in recipe.slices for source in one.sources if source.name}
    roles = dict(zip(folders, _roles(list(folders), names), strict=True))
    by_role = {roles[model]: folder for model, folder in folders.items()}
    of_adapters = {roles[model]: roles[whole] for model, whole in adapters.items()}
    named = NamedRecipe(recipe, roles, of_adapters, tuple(earlier))
    parameters = first_parameters(named, by_role)
    return MergeRequest(by_role.pop(PRETRAINED), by_role, parameters, named)


def _find(recipe: Recipe, model: ModelReference, headers_in: Path | None = None) -> Path:
    sources = [source for one in recipe.slices for source in one.sources]
    place = next((source.place for source in sources if model in (source.model, source.model.lora)), recipe.place)
    try:
        return find_model_folder(model.path, model.revision, headers_in)
    except UserError as error:
        raise UserError(f"{place}: model: {error}") from None


def _roles(models: Sequence[ModelReference], names: Mapping[ModelReference, str]) -> list[str]:
    """The roles of models: the first is the pretrained one, the others have their given names or their folders'."""
    roles = [PRETRAINED]
    for model in models[1:]:
        name = names.get(model) or _word(Path(model.lora.path if model.lora else model.path).name)
        roles.append(free_name(name, roles))
    return roles


def _word(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip(".") or "model"
