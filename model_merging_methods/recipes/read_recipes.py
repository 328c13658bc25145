"""Read a recipe file: its documents, and the order in which they are merged."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from model_merging_methods.masks import MASKS
from model_merging_methods.merge_parameters import PAPERS_WORDS, WEIGHT_FORMATS
from model_merging_methods.mixup import Mixup, draw_ratios, given_ratios, ratios_by_layer
from model_merging_methods.recipes.checks import check_slice
from model_merging_methods.recipes.mergekit_methods import MASK_PARAMETERS, RECIPE_METHODS, RecipeMethod
from model_merging_methods.recipes.reading import Node, nearest, node_of_values
from model_merging_methods.recipes.recipe import Recipe, RecipeMask, Slice, Source, parameters_of
from model_merging_methods.recipes.references import ModelReference, read_layers, read_model
from model_merging_methods.recipes.settings import SettingReader, Settings
from model_merging_methods.recipes.tokenizer import read_chat_template, read_tokenizer
from utils.errors import UserError

DTYPES = ("float16", "bfloat16", "float32", "float64")
_KEYS = (
    "name",
    "merge_method",
    "base_model",
    "models",
    "slices",
    "modules",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "mask",
    "mixup",
    "seed",
    "exclude_param_names_regex",
)
_MOE_KEYS = ("experts", "gate_mode", "experts_per_token", "shared_experts")


def read_recipes(documents: Sequence[Node]) -> list[Recipe]:
    """The merges of documents in the order to run them, the result last. Later ones use earlier ones by their names.

    A document without a name, or the only one, is the result; others that it does not need are left out. Raises
    UserError for anything that mergekit would refuse or ignore.
    """
    recipes = [_read(node) for node in documents]
    return _ordered(recipes, [node.value for node in documents])


def recipe_from_plain(document: Mapping[str, Any], file: Path) -> Recipe:
    """The recipe of plain values, as a record has them."""
    return _read(node_of_values(document, str(file)))


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """A recipe with another seed, and the ratios that are drawn with it."""
    mixup = recipe.mixup
    if mixup is not None and mixup.is_drawn:
        mixup = Mixup(draw_ratios(mixup.alpha, len(mixup.ratios), seed), mixup.alpha)
    return replace(recipe, seed=seed, mixup=mixup)


def _ordered(recipes: list[Recipe], entries: list[Mapping[str, Node]]) -> list[Recipe]:
    if len(recipes) == 1:
        return recipes
    named: dict[str, Recipe] = {}
    unnamed: list[Recipe] = []
    for recipe, keys in zip(recipes, entries, strict=True):
        if recipe.name is None:
            unnamed.append(recipe)
        elif recipe.name in named:
            first = named[recipe.name].place
            raise keys["name"].error(f"{recipe.name} is the name of two documents, see {first}; rename one")
        else:
            named[recipe.name] = recipe
    if len(unnamed) != 1:
        place = unnamed[1].place if unnamed else recipes[-1].place
        found = f"{len(unnamed)} documents have no name" if unnamed else "all documents have a name"
        raise UserError(f"{place}: name: {found}; give a name to every one but the result")
    used = {recipe.name: {model.path for model in recipe.models} & named.keys() for recipe in recipes}
    needed = [None]
    for name in needed:  # grows
        needed += sorted(used[name] - set(needed))
    try:
        order = list(TopologicalSorter(used).static_order())
    except CycleError as error:
        circle = error.args[1][::-1]
        raise UserError(
            f"{named[circle[0]].place}: name: {' uses '.join(circle)}: a circle; let one of them use other models"
        ) from None
    by_name = {None: unnamed[0], **named}
    return [by_name[name] for name in order if name in needed]


def _read(document: Node) -> Recipe:
    entries = document.entries()
    moe = [key for key in entries if key in _MOE_KEYS]
    if moe:
        raise entries[moe[0]].error(f"mixtures of experts are not built; {_methods()}")
    entries = document.mapping(*_KEYS)
    if "merge_method" not in entries:
        raise UserError(f"{document.place}: merge_method: is missing; {_methods()}")
    method = _read_method(entries["merge_method"])
    mask = _read_mask(entries["mask"], method) if "mask" in entries else None
    owner = f"{method.name} with the mask {mask.name}" if mask else method.name
    reader = SettingReader(owner, parameters_of(method, mask), "mixup" in entries and method.takes_ratios)
    base = read_model(entries["base_model"]) if "base_model" in entries else None
    slices, module_parameters = _read_form(document, entries, base, reader)
    recipe = Recipe(
        document=document.plain,
        name=_read_document_name(entries["name"]) if "name" in entries else None,
        method=method,
        base=base,
        slices=slices,
        levels=(module_parameters, reader.read(entries.get("parameters"))),
        dtype=_read_dtype(entries, "dtype"),
        out_dtype=_read_dtype(entries, "out_dtype"),
        tokenizer=read_tokenizer(entries),
        chat_template=read_chat_template(entries["chat_template"]) if "chat_template" in entries else None,
        mask=mask,
        mixup=None,
        seed=_read_seed(entries["seed"]) if "seed" in entries else 0,
        place=document.place,
        places={key: node.place for key, node in entries.items()},
    )
    if "mixup" in entries:
        recipe = replace(recipe, mixup=_read_mixup(entries["mixup"], recipe))
    if "exclude_param_names_regex" in entries:
        patterns = _read_patterns(entries["exclude_param_names_regex"], recipe)
        recipe = replace(recipe, exclude_param_names_regex=patterns)
    _check_names(slices)
    for one in slices:
        check_slice(one, recipe)
    if "seed" in entries:
        _check_seed(entries["seed"], recipe)
    return recipe


def _check_names(slices: Sequence[Slice]) -> None:
    """Raise UserError for a name of two models, or a model with two names."""
    models: dict[str, ModelReference] = {}
    names: dict[ModelReference, str] = {}
    for source in (source for one in slices for source in one.sources if source.name):
        if models.setdefault(source.name, source.model) != source.model:
            raise UserError(f"{source.place}: name: {source.name} is the name of two models; rename one")
        if names.setdefault(source.model, source.name) != source.name:
            raise UserError(f"{source.place}: name: {source.model} has another name before; give it one")


def _read_method(node: Node) -> RecipeMethod:
    name = node.text()
    if name not in RECIPE_METHODS:
        raise node.error(f"{name} is unknown; {_methods(name)}")
    return RECIPE_METHODS[name]


def _methods(name: str = "") -> str:
    known = ", ".join(RECIPE_METHODS)
    near = nearest(name, RECIPE_METHODS)
    return f"{near} There are {known}" if near else f"choose one of {known}"


def _read_mask(node: Node, method: RecipeMethod) -> RecipeMask:
    entries = node.mapping("name", "weight_format") if isinstance(node.value, dict) else {"name": node}
    if "name" not in entries:
        raise node.error("has no name; add name: dare")
    names = {**{name: name for name in MASKS}, **{word: name for name, word in PAPERS_WORDS.items()}}
    name = names[entries["name"].chosen(tuple(names))]
    formats = entries.get("weight_format")
    if not method.takes_mask:
        own = f"has its own mask, {method.own_mask}" if method.own_mask else "takes no mask"
        raise node.error(f"{method.name} {own}; remove this mask or choose another method")
    both = {one.name for one in method.parameters.values() if one.has_effect} & MASK_PARAMETERS[name].keys()
    if both:
        raise node.error(
            f"{method.name} and {name} both have a parameter {min(both)}; choose another mask or method, or write a "
            "recipe of our options (docs/recipes.md)"
        )
    return RecipeMask(name, formats.chosen(WEIGHT_FORMATS) if formats else WEIGHT_FORMATS[0], node.place)


def _read_form(
    document: Node, entries: Mapping[str, Node], base: ModelReference | None, reader: SettingReader
) -> tuple[tuple[Slice, ...], Settings]:
    """The slices of `models`, `slices` or `modules`, and a module's parameters."""
    given = [key for key in ("models", "slices", "modules") if key in entries]
    if len(given) != 1:
        where = entries[given[1]] if given else document
        found = f"{' and '.join(given)} are given" if given else "none is given"
        raise UserError(f"{where.place}: {given[1] if given else 'models'}: {found}; give models, slices or modules")
    if "models" in entries:
        return (_read_models(entries["models"], base, reader),), {}
    if "slices" in entries:
        return tuple(_read_slice(node, base, reader) for node in entries["slices"].items()), {}
    modules = entries["modules"].entries()
    if len(modules) != 1:
        raise entries["modules"].error(f"has {len(modules)} modules; give one, such as default")
    module = next(iter(modules.values()))
    inner = module.mapping("models", "slices", "parameters")
    slices, _ = _read_form(module, {key: node for key, node in inner.items() if key != "parameters"}, base, reader)
    return slices, reader.read(inner.get("parameters"))


def _read_models(node: Node, base: ModelReference | None, reader: SettingReader) -> Slice:
    sources = []
    for item in node.items():
        entries = item.mapping("model", "name", "parameters")
        sources.append(_read_source(item, entries, reader))
    if base is not None and base not in [source.model for source in sources]:
        sources.append(Source(base, None, {}, node.place))
    return _slice(sources, base, {}, node)


def _read_slice(node: Node, base: ModelReference | None, reader: SettingReader) -> Slice:
    entries = node.mapping("sources", "base_model", "parameters", "residual_weight")
    if "sources" not in entries:
        raise node.error("a slice has no sources; add sources: with a model")
    sources = [
        _read_source(item, item.mapping("model", "name", "layer_range", "parameters"), reader)
        for item in entries["sources"].items()
    ]
    own = read_model(entries["base_model"]) if "base_model" in entries else base
    return _slice(sources, own, reader.read(entries.get("parameters")), node)


def _slice(sources: list[Source], base: ModelReference | None, parameters: Settings, node: Node) -> Slice:
    seen: set[ModelReference] = set()
    for source in sources:
        if source.model in seen:
            raise UserError(f"{source.place}: model: {source.model} is listed twice in one slice; remove one")
        seen.add(source.model)
    return Slice(tuple(sources), base, parameters, node.place)


def _read_source(item: Node, entries: Mapping[str, Node], reader: SettingReader) -> Source:
    if "model" not in entries:
        raise item.error("an item has no model; add model: with a folder")
    layers = read_layers(entries["layer_range"]) if "layer_range" in entries else None
    return Source(
        read_model(entries["model"]),
        layers,
        reader.read(entries.get("parameters"), True),
        entries["model"].place,
        _read_name(entries["name"]) if "name" in entries else None,
    )


def _read_document_name(node: Node) -> str:
    name = node.text()
    if not name.strip("."):
        raise node.error(f"{name!r} cannot name a document; give another name")
    return name


def _read_name(node: Node) -> str:
    name = node.text()
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name) or name == "pretrained":
        raise node.error(f"{name!r} cannot name a model; use letters, digits, '.', '_' and '-'")
    return name


def _read_patterns(node: Node, recipe: Recipe) -> tuple[str, ...]:
    if recipe.base is None:
        raise node.error("keeps the base's values, and there is no base_model; add one, or remove this key")
    patterns = tuple(Node(one.value, node.name, one.place).text() for one in _as_items(node))
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise node.error(f"{pattern} is not a regular expression ({error}); correct it") from None
    return patterns


def _read_dtype(entries: Mapping[str, Node], key: str) -> str | None:
    return entries[key].chosen(DTYPES) if key in entries else None


def _read_seed(node: Node) -> int:
    seed = node.typed(int)
    if seed < 0:
        raise node.error(f"is {seed}; give a number from 0 on")
    return seed


def _check_seed(node: Node, recipe: Recipe) -> None:
    if not recipe.is_random:
        raise node.error("has no effect, because nothing is random; remove it")


def _read_mixup(node: Node, recipe: Recipe) -> Mixup:
    if not recipe.method.takes_ratios:
        raise node.error(f"{recipe.method.name} takes no ratios; remove mixup or choose another method")
    entries = node.mapping("alpha", "ratios", "ratio_by_layer")
    if len(entries) != 1:
        raise node.error("give one of alpha, ratios and ratio_by_layer")
    numbers = {len(one.inputs(recipe.method.base)) for one in recipe.slices}
    if len(numbers) > 1:
        raise node.error(f"slices merge {min(numbers)} to {max(numbers)} models; ratios need one number of models")
    models = numbers.pop()
    if "alpha" in entries:
        alpha = entries["alpha"].typed(float)
        try:
            return Mixup(draw_ratios(alpha, models, recipe.seed), alpha)
        except UserError:
            raise entries["alpha"].error(f"{alpha:g} is too large to draw from; give equal ratios") from None
    if "ratio_by_layer" in entries:
        points = entries["ratio_by_layer"]
        given = [Node(one.value, points.name, one.place).typed(float) for one in points.items()]
        if models != 2:
            raise points.error(f"is for two models, not {models}; give ratios, one for each model")
        try:
            return ratios_by_layer(given, models)
        except UserError:
            raise points.error("give two ratios or more between 0 and 1") from None
    ratios = entries["ratios"]
    given = [Node(one.value, ratios.name, one.place).typed(float) for one in _as_items(ratios)]
    try:
        return Mixup(given_ratios(given, models))
    except UserError:
        raise ratios.error(f"give {models} numbers between 0 and 1 that sum to 1, one for each model") from None


def _as_items(node: Node) -> list[Node]:
    return node.items() if isinstance(node.value, list) else [node]
