"""Recipes: merges written in mergekit's YAML, with keys of our own for what only our commands can say.

A file has one document or more. `models` and `modules` become slices: whole models are one slice over all layers.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from model_merging_methods.masks import MASKS
from model_merging_methods.method import Option
from model_merging_methods.methods import METHODS
from model_merging_methods.recipes.mergekit_methods import (
    RecipeMethod,
    mask_targets,
    method_names,
    recipe_method,
)
from model_merging_methods.recipes.reading import Node, near_names, parse_documents, read_documents
from model_merging_methods.recipes.settings import Settings, read_settings

DTYPES = ("float32", "float16", "bfloat16", "float64")
_OWN_KEYS = ("mask", "weight_format", "seed", "exclude_param_names_regex")
_KEYS = (
    *("merge_method", "models", "slices", "modules", "base_model", "parameters", "name", "dtype", "out_dtype"),
    *("tokenizer_source", "tokenizer", "chat_template"),
    *_OWN_KEYS,
)
_MOE_KEYS = ("gate_mode", "experts", "experts_per_token")


@dataclass(frozen=True)
class ModelReference:
    """A model as recipes name it: `path`, `path@revision`, `path+adapter`."""

    path: str
    revision: str | None = None
    adapter: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.path}{revision}{f'+{self.adapter}' if self.adapter else ''}"


@dataclass(frozen=True)
class Source:
    """One model of a slice, its layers `start` … `stop` − 1 (None: all), and its own settings."""

    model: ModelReference
    layers: tuple[int, int] | None
    settings: Settings
    node: Node


@dataclass(frozen=True)
class Slice:
    """Consecutive layers of the merged model. `levels` are the settings of slice, module and recipe."""

    sources: Sequence[Source]
    base: ModelReference | None
    levels: Sequence[Settings]
    node: Node


@dataclass(frozen=True)
class TokenSource:
    """Where the row of a token comes from: zeros, or a model's row of `token` (a text or an id)."""

    model: ModelReference | None
    token: str | int
    force: bool
    node: Node


@dataclass(frozen=True)
class TokenizerSettings:
    """The vocabulary to build: `source` is union, base or a model; `tokens` have own rows; rows are padded to a
    multiple of `multiple`."""

    source: str | ModelReference
    multiple: int
    tokens: Mapping[str, TokenSource | None]


@dataclass(frozen=True)
class Recipe:
    """One document."""

    name: str | None
    method_name: str
    method: RecipeMethod
    base: ModelReference | None
    slices: Sequence[Slice]
    dtype: str | None
    out_dtype: str | None
    tokenizer: TokenizerSettings | None
    chat_template: str | None
    seed: int
    weight_format: str
    exclude: tuple[str, ...]
    node: Node

    @property
    def models(self) -> list[ModelReference]:
        """All models, the base first."""
        found = [self.base] if self.base else []
        for part in self.slices:
            found += [part.base] if part.base else []
            found += [source.model for source in part.sources]
        if self.tokenizer:
            sources = [self.tokenizer.source, *(token and token.model for token in self.tokenizer.tokens.values())]
            found += [model for model in sources if isinstance(model, ModelReference)]
        return list(dict.fromkeys(found))

    def base_of(self, part: Slice) -> ModelReference | None:
        return part.base or self.base


def read_recipes(file: Path) -> list[Recipe]:
    """The documents of a recipe file in an order in which each comes after those that it uses; the last is the result.

    Raises UserError, naming file, line and key.
    """
    recipes = [_read(node) for node in read_documents(file)]
    named: dict[str, Recipe] = {}
    for recipe in recipes:
        if recipe.name in named:
            raise recipe.node.error(f"name: {recipe.name} is the name of two documents; choose another")
        if recipe.name is not None:
            named[recipe.name] = recipe
    unnamed = [recipe for recipe in recipes if recipe.name is None]
    if len(recipes) > 1 and len(unnamed) > 1:
        raise unnamed[1].node.error("a second document without a name; only the result has none, so name this one")
    result = unnamed[0] if unnamed else recipes[-1]
    return _in_order(result, named)


def recipe_from_plain(document: Mapping[str, Any], file: Path) -> Recipe:
    """The recipe of plain values, as a record has them."""
    (node,) = parse_documents(yaml.safe_dump(dict(document), sort_keys=False), file)
    return _read(node)


def with_models(value: Any, names: Mapping[str, str]) -> Any:
    """A recipe's plain values with other names of its models."""
    if isinstance(value, list):
        return [with_models(one, names) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: names[one]
        if key in ("model", "base_model", "tokenizer_source", "source") and isinstance(one, str) and one in names
        else with_models(one, names)
        for key, one in value.items()
    }


def _in_order(result: Recipe, named: Mapping[str, Recipe]) -> list[Recipe]:
    """The documents that `result` needs, each after its own needs, and `result`."""
    order: list[Recipe] = []
    open_names: list[str] = []

    def visit(recipe: Recipe) -> None:
        if recipe in order:
            return
        if recipe.name in open_names:
            circle = " → ".join([*open_names[open_names.index(recipe.name) :], recipe.name])
            raise recipe.node.error(f"name: documents use each other in a circle ({circle}); remove one use")
        open_names.append(recipe.name or "")
        for model in recipe.models:
            if model.path in named:
                visit(named[model.path])
        open_names.pop()
        order.append(recipe)

    visit(result)
    return order


def _read(node: Node) -> Recipe:
    _refuse_experts(node)
    given = node.mapping("recipe", _KEYS)
    if "merge_method" not in given:
        raise node.error("merge_method: is missing; name a method")
    method_name = given["merge_method"].text("merge_method")
    method = recipe_method(method_name, _asks_to_rescale(node.plain))
    if method is None:
        remedy = near_names(method_name, method_names())
        raise given["merge_method"].error(f"merge_method: there is no method {method_name}; {remedy}")
    method = _with_mask(method, given.get("mask"))
    options = method.options()
    top = read_settings(given.get("parameters"), "parameters", options)
    base = _model(given["base_model"], "base_model") if "base_model" in given else None
    slices = _slices(node, given, options, top)
    dtype, out_dtype = (_choice(given.get(key), key, DTYPES) for key in ("dtype", "out_dtype"))
    recipe = Recipe(
        name=str(given["name"].value) if "name" in given else None,
        method_name=method_name,
        method=method,
        base=base,
        slices=slices,
        dtype=dtype,
        out_dtype=out_dtype or dtype,
        tokenizer=_tokenizer(given),
        chat_template=given["chat_template"].text("chat_template") if "chat_template" in given else None,
        seed=given["seed"].whole_number("seed") if "seed" in given else 0,
        weight_format=_choice(given.get("weight_format"), "weight_format", ("delta_weight", "finetuned_weight"))
        or "delta_weight",
        exclude=_patterns(given.get("exclude_param_names_regex")),
        node=node,
    )
    _check_base(recipe, given.get("merge_method", node))
    return recipe


def _refuse_experts(node: Node) -> None:
    found = [key for key in _MOE_KEYS if isinstance(node.value, dict) and key in node.value]
    if found:
        raise node.value[found[0]].error(
            f"{found[0]}: a recipe of mergekit-moe, which builds a mixture of experts; these are not made here. "
            f"Methods: {', '.join(method_names())}"
        )


def _asks_to_rescale(plain: Any) -> bool:
    """Whether `rescale` is true anywhere in a recipe."""
    if isinstance(plain, dict):
        return any(
            (key == "rescale" and "True" in str(value)) or _asks_to_rescale(value) for key, value in plain.items()
        )
    return isinstance(plain, list) and any(map(_asks_to_rescale, plain))


def _with_mask(method: RecipeMethod, node: Node | None) -> RecipeMethod:
    """The method after our key `mask`, whose options are further parameters."""
    if node is None:
        return method
    name = node.text("mask")
    if name not in MASKS:
        raise node.error(f"mask: there is no mask {name}; {near_names(name, MASKS)}")
    if method.mask is not None or not METHODS[method.method].takes_mask:
        raise node.error(f"mask: this merge_method {'has its own mask' if method.mask else 'takes none'}; remove it")
    doubled = METHODS[method.method].options.keys() & MASKS[name].options.keys()
    if doubled:
        raise node.error(f"mask: {name} and the method both have the option {sorted(doubled)[0]}; choose another")
    return RecipeMethod(
        method.method,
        name,
        method.base,
        {**method.parameters, **mask_targets(name)},
        method.required,
        method.defaults,
        method.ignored,
    )


def _slices(node: Node, given: Mapping[str, Node], options: Mapping[str, Option | None], top: Settings) -> list[Slice]:
    forms = [key for key in ("models", "slices", "modules") if key in given]
    if len(forms) != 1:
        place = given[forms[1]] if forms else node
        what = f"{' and '.join(forms)} together" if forms else "models: is missing"
        raise place.error(f"{what}; give exactly one of models, slices and modules")
    if forms == ["modules"]:
        modules = given["modules"].mapping("modules", given["modules"].value or ())
        if list(modules) != ["default"]:
            raise given["modules"].error("modules: only `default` is merged here; give a language model's recipe")
        inner = modules["default"].mapping("modules: default", ("models", "slices", "parameters"))
        own = read_settings(inner.get("parameters"), "parameters", options)
        return _slices_of(modules["default"], inner, options, [own, top])
    return _slices_of(node, given, options, [top])


def _slices_of(
    node: Node, given: Mapping[str, Node], options: Mapping[str, Option | None], levels: Sequence[Settings]
) -> list[Slice]:
    if "models" in given:
        sources = [_source(one, "models", ("model", "parameters"), options) for one in given["models"].list("models")]
        return [Slice(sources, None, [{}, *levels], given["models"])]
    if "slices" not in given:
        raise node.error("modules: default: give models or slices")
    slices = []
    for one in given["slices"].list("slices"):
        inner = one.mapping("slices", ("sources", "base_model", "parameters", "residual_weight"))
        if "sources" not in inner:
            raise one.error("slices: a slice without sources; add them")
        keys = ("model", "layer_range", "parameters", "residual_weight")
        sources = [_source(s, "sources", keys, options) for s in inner["sources"].list("sources")]
        own = read_settings(inner.get("parameters"), "parameters", options)
        base = _model(inner["base_model"], "base_model") if "base_model" in inner else None
        slices.append(Slice(sources, base, [own, *levels], one))
        _check_lengths(slices[-1])
    return slices


def _check_lengths(part: Slice) -> None:
    lengths = {source.layers[1] - source.layers[0] for source in part.sources if source.layers}
    if len(lengths) > 1:
        shown = ", ".join(str(list(source.layers)) for source in part.sources if source.layers)
        raise part.node.error(f"layer_range: the ranges {shown} of one slice differ in length; make them equal")


def _source(node: Node, what: str, keys: Sequence[str], options: Mapping[str, Option | None]) -> Source:
    given = node.mapping(what, keys)
    if "model" not in given:
        raise node.error(f"{what}: an entry without a model; add one")
    layers = None
    if given.get("layer_range") is not None and given["layer_range"].value is not None:
        ends = [end.whole_number("layer_range") for end in given["layer_range"].list("layer_range")]
        if len(ends) != 2 or not 0 <= ends[0] < ends[1]:
            raise given["layer_range"].error(f"layer_range: {ends} is no range; write [first, last + 1]")
        layers = (ends[0], ends[1])
    settings = _own_settings(given.get("parameters"), options)
    return Source(_model(given["model"], "model"), layers, settings, node)


def _own_settings(node: Node | None, options: Mapping[str, Option | None]) -> Settings:
    """The settings of one model: numbers that each model has."""
    for key in node.value if node and isinstance(node.value, dict) else ():
        option = options.get(key)
        if option is not None and not option.is_per_model:
            raise node.value[key].error(f"{key}: is one value for all models; move it to the recipe's parameters")
    return read_settings(node, "parameters", options)


def _model(node: Node, what: str) -> ModelReference:
    if isinstance(node.value, dict):  # as mergekit writes it into its own copies of recipes
        return _model_from_parts(node, what)
    text = node.text(what)
    if text.count("@") > 1 or text.count("+") > 1:
        raise node.error(f"{what}: {text} has two @ or two +; write path, path@revision or path+adapter")
    found = re.fullmatch(r"([^@+]+)(?:@([^+]+))?(?:\+(.+))?", text)
    if not found:
        raise node.error(f"{what}: {text} names no model; write path, path@revision or path+adapter")
    return ModelReference(*found.groups())


def _model_from_parts(node: Node, what: str) -> ModelReference:
    given = node.mapping(what, ("model", "lora", "override_architecture"))
    parts = {}
    for key in ("model", "lora"):
        if key in given and given[key].value is not None:
            inner = given[key].mapping(what, ("path", "revision"))
            parts[key] = {name: one.value for name, one in inner.items()}
    if "path" not in parts.get("model", {}):
        raise node.error(f"{what}: names no model; write path, path@revision or path+adapter")
    model, adapter = parts["model"], parts.get("lora", {})
    return ModelReference(model["path"], model.get("revision"), adapter.get("path"))


def _tokenizer(given: Mapping[str, Node]) -> TokenizerSettings | None:
    if "tokenizer" in given and "tokenizer_source" in given:
        raise given["tokenizer_source"].error("tokenizer_source: is given beside tokenizer; remove one of them")
    if "tokenizer_source" in given:
        return TokenizerSettings(_tokenizer_source(given["tokenizer_source"]), 1, {})
    if "tokenizer" not in given:
        return None
    inner = given["tokenizer"].mapping("tokenizer", ("source", "tokens", "pad_to_multiple_of"))
    source = _tokenizer_source(inner["source"]) if "source" in inner else "union"
    multiple = 1
    if "pad_to_multiple_of" in inner and inner["pad_to_multiple_of"].value is not None:
        multiple = inner["pad_to_multiple_of"].whole_number("pad_to_multiple_of")
        if multiple < 1:
            raise inner["pad_to_multiple_of"].error("pad_to_multiple_of: write a whole number from 1 on")
    tokens = {}
    if "tokens" in inner and inner["tokens"].value is not None:
        for token, node in inner["tokens"].mapping("tokens", inner["tokens"].value).items():
            tokens[token] = _token_source(token, node)
    return TokenizerSettings(source, multiple, tokens)


def _tokenizer_source(node: Node) -> str | ModelReference:
    return node.value if node.value in ("union", "base") else _model(node, "tokenizer source")


def _token_source(token: str, node: Node) -> TokenSource | None:
    """The row of a token; None for a token that is only added."""
    given = node.mapping(f"tokens: {token}", ("source", "force"))
    force = given["force"].value if "force" in given else False
    if not isinstance(force, bool):
        raise given["force"].error(f"tokens: {token}: force: write true or false, not {given['force'].kind}")
    if "source" not in given or given["source"].value is None:
        if force:
            raise node.error(f"tokens: {token}: force without a source; add one")
        return None
    source = given["source"]
    if not isinstance(source.value, dict):
        return TokenSource(_model(source, "source"), token, force, node)
    kind = source.value.get("kind")
    if kind is not None and kind.value == "zero":
        source.mapping("source", ("kind",))
        return TokenSource(None, token, force, node)
    inner = source.mapping("source", ("kind", "model", "token", "token_id"))
    named = [key for key in ("token", "token_id") if key in inner]
    if kind is None or kind.value != "model_token" or "model" not in inner or len(named) != 1:
        raise source.error("source: write {kind: zero}, a model, or {kind: model_token, model: …, token: …}")
    wanted = inner[named[0]]
    return TokenSource(
        _model(inner["model"], "model"),
        str(wanted.value) if named == ["token"] else wanted.whole_number("token_id"),
        force,
        node,
    )


def _choice(node: Node | None, what: str, choices: Sequence[str]) -> str | None:
    if node is None or node.value is None:
        return None
    text = node.text(what)
    if text not in choices:
        raise node.error(f"{what}: {text}; choose one of {', '.join(choices)}")
    return text


def _patterns(node: Node | None) -> tuple[str, ...]:
    if node is None:
        return ()
    patterns = tuple(one.text("exclude_param_names_regex") for one in node.list("exclude_param_names_regex"))
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise node.error(f"exclude_param_names_regex: {pattern} is not a regular expression ({error})") from None
    return patterns


def _check_base(recipe: Recipe, place: Node) -> None:
    for part in recipe.slices:
        if recipe.base_of(part) is None and recipe.method.base in ("required", "first"):
            raise place.error(f"base_model: {recipe.method_name} needs a base model; add the key base_model")
