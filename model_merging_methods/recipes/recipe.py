"""Recipes: merges as mergekit's YAML describes them, and what this toolkit adds to that language.

    merge_method: task_arithmetic        # mergekit's methods, and ours by their names
    base_model: org/base
    models:
      - model: org/math@v1.0             # path, path@revision, path+lora
        parameters: {weight_mask_rate: 0.3}
      - model: org/code
    parameters: {lambda: 0.5, weight_mask_rate: 0.2}
    mask: dare                           # ours: mask the models first; its options are parameters like others
    mixup: {alpha: 0.5}                  # ours: M3's ratios, drawn with α, or given as {ratios: [0.3, 0.7]}
    seed: 0                              # ours: of ratios and random masks

`mask: {name: dare, weight_format: finetuned_weight}` masks weights, not task vectors. Ratios follow the order of the
models, the base left out. They replace the parameter `weight`.

mergekit ignores keys that it does not know. Here they are errors, each with its line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from model_merging_methods.masks import MASKS
from model_merging_methods.merge_parameters import PAPERS_WORDS, WEIGHT_FORMATS
from model_merging_methods.mixup import Mixup, draw_ratios, given_ratios
from model_merging_methods.recipes.mergekit_methods import (
    MASK_PARAMETERS,
    RECIPE_METHODS,
    Base,
    Parameter,
    RecipeMethod,
)
from model_merging_methods.recipes.reading import Node, choice, read_documents
from model_merging_methods.recipes.settings import Setting, read_setting
from utils.errors import UserError

DTYPES = ("float16", "bfloat16", "float32", "float64")
CHAT_TEMPLATES = ("auto", "alpaca", "chatml", "exaone", "llama3", "mistral")
NO_EFFECT = ("int8_mask",)  # changes how mergekit stores masks, but no value
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
)
_MOE_KEYS = ("experts", "gate_mode", "experts_per_token", "shared_experts")

Settings = Mapping[str, Setting]


@dataclass(frozen=True)
class ModelReference:
    """A model: a folder, a name of the hub or of another document; its revision; an adapter to apply to it."""

    path: str
    revision: str | None = None
    lora: ModelReference | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.path}{revision}" + (f"+{self.lora}" if self.lora else "")


@dataclass(frozen=True)
class Source:
    """An input of a slice: the layers [a, b) of a model (None: all), and its own parameters."""

    model: ModelReference
    layers: tuple[int, int] | None
    parameters: Settings
    place: str


@dataclass(frozen=True)
class Slice:
    """Layers of the output, merged from as many layers of each source. base: the slice's own or the recipe's."""

    sources: tuple[Source, ...]
    base: ModelReference | None
    parameters: Settings
    place: str

    @property
    def base_source(self) -> Source | None:
        """The source that is the base."""
        return next((source for source in self.sources if source.model == self.base), None)

    def inputs(self, role: Base) -> tuple[Source, ...]:
        """The models that a method merges, which uses the base in this role."""
        if role is Base.INPUT:
            return self.sources
        others = tuple(source for source in self.sources if source.model != self.base)
        return (self.base_source, *others) if role is Base.FIRST and self.base_source else others


@dataclass(frozen=True)
class RecipeMask:
    """A mask of `MASKS` that is applied before the method, to task vectors or to weights."""

    name: str
    weight_format: str
    place: str


@dataclass(frozen=True)
class TokenSource:
    """Where the embedding of a token comes from. kind: "zero", "model" (its row of this token), "model_token" (its row
    of another token, by text or id), or "default" (the usual rule). force: even where an input has the token."""

    kind: str
    model: ModelReference | None = None
    token: str | None = None
    token_id: int | None = None
    force: bool = False


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer to build. source: "union", "base" or a model."""

    source: str | ModelReference
    tokens: Mapping[str, TokenSource] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None


@dataclass(frozen=True)
class Recipe:
    """One merge. Parameters of the module and of the whole recipe are `levels`, in the order of a look-up."""

    file: str
    name: str | None
    method: RecipeMethod
    base: ModelReference | None
    slices: tuple[Slice, ...]
    levels: tuple[Settings, ...]
    dtype: str | None
    out_dtype: str | None
    tokenizer: Tokenizer | None
    chat_template: str | None
    mask: RecipeMask | None
    mixup: Mixup | None
    seed: int
    place: str

    @property
    def models(self) -> tuple[ModelReference, ...]:
        """All models that the recipe names, each once: the base first, then in the order of the file."""
        named = [self.base] if self.base else []
        for one in self.slices:
            named += [*([one.base] if one.base else []), *(source.model for source in one.sources)]
        if self.tokenizer is not None:
            named += [self.tokenizer.source] if isinstance(self.tokenizer.source, ModelReference) else []
            named += [source.model for source in self.tokenizer.tokens.values() if source.model]
        return tuple(dict.fromkeys(named))

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The parameters of the method and the mask."""
        return _parameters(self.method, self.mask)


def read_recipes(file: Path) -> list[Recipe]:
    """The merges of a file in the order to run them, the result last. Later ones use earlier ones by their names.

    A document without a name, or the only one, is the result; others that it does not need are left out. Raises
    UserError for anything that mergekit would refuse or ignore.
    """
    documents = read_documents(file)
    recipes = [_read(node, str(file)) for node in documents]
    return _ordered(recipes, [node.value for node in documents])


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
    order: list[Recipe] = []
    for recipe in [*recipes, unnamed[0]]:
        if recipe is unnamed[0]:
            order = []
        _add_after_its_inputs(recipe, named, order, ())
    return order


def _add_after_its_inputs(
    recipe: Recipe, named: Mapping[str, Recipe], order: list[Recipe], waiting: tuple[Recipe, ...]
) -> None:
    if recipe in waiting:
        circle = " uses ".join(str(one.name) for one in (*waiting[waiting.index(recipe) :], recipe))
        raise UserError(f"{recipe.place}: name: {circle}, a circle; let one of them use other models")
    if recipe in order:
        return
    for model in recipe.models:
        if model.path in named:
            _add_after_its_inputs(named[model.path], named, order, (*waiting, recipe))
    order.append(recipe)


def _read(document: Node, file: str) -> Recipe:
    entries = document.entries()
    moe = [key for key in entries if key in _MOE_KEYS]
    if moe:
        raise entries[moe[0]].error(f"mixtures of experts are not built; {_methods()}")
    entries = document.mapping(*_KEYS)
    if "merge_method" not in entries:
        raise UserError(f"{document.place}: merge_method: is missing; {_methods()}")
    method = _read_method(entries["merge_method"])
    mask = _read_mask(entries["mask"], method) if "mask" in entries else None
    reader = _SettingReader(method, mask, "mixup" in entries)
    base = _read_model(entries["base_model"]) if "base_model" in entries else None
    slices, module_parameters = _read_form(document, entries, base, reader)
    recipe = Recipe(
        file=file,
        name=entries["name"].text() if "name" in entries else None,
        method=method,
        base=base,
        slices=slices,
        levels=(module_parameters, reader.read(entries.get("parameters"))),
        dtype=_read_dtype(entries, "dtype"),
        out_dtype=_read_dtype(entries, "out_dtype"),
        tokenizer=_read_tokenizer(entries),
        chat_template=_read_chat_template(entries["chat_template"]) if "chat_template" in entries else None,
        mask=mask,
        mixup=None,
        seed=_read_seed(entries["seed"]) if "seed" in entries else 0,
        place=document.place,
    )
    for one in slices:
        _check_slice(one, recipe)
    if "mixup" in entries:
        recipe = replace(recipe, mixup=_read_mixup(entries["mixup"], recipe))
    if "seed" in entries:
        _check_seed(entries["seed"], recipe)
    return recipe


def _read_method(node: Node) -> RecipeMethod:
    name = node.text()
    if name not in RECIPE_METHODS:
        raise node.error(f"{name} is unknown; {_methods(name)}")
    return RECIPE_METHODS[name]


def _methods(name: str = "") -> str:
    known = ", ".join(RECIPE_METHODS)
    near = choice(name, RECIPE_METHODS)
    return f"{near} There are {known}" if name and near.startswith("did") else f"choose one of {known}"


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
    both = method.parameters.keys() & MASK_PARAMETERS[name].keys()
    if both:
        raise node.error(f"{method.name} and {name} both have a parameter {min(both)}; choose another mask or method")
    return RecipeMask(name, formats.chosen(WEIGHT_FORMATS) if formats else WEIGHT_FORMATS[0], node.place)


def _parameters(method: RecipeMethod, mask: RecipeMask | None) -> dict[str, Parameter]:
    return {**method.parameters, **(MASK_PARAMETERS[mask.name] if mask else {})}


class _SettingReader:
    """Reads the parameters of any level of one recipe."""

    def __init__(self, method: RecipeMethod, mask: RecipeMask | None, has_ratios: bool):
        self._owner = f"{method.name} with the mask {mask.name}" if mask else method.name
        self._known = _parameters(method, mask)
        self._has_ratios = has_ratios and method.takes_ratios

    def read(self, node: Node | None, is_of_source: bool = False) -> Settings:
        entries = node.entries() if node else {}
        return {name: self._setting(entry, is_of_source) for name, entry in entries.items() if name not in NO_EFFECT}

    def _setting(self, node: Node, is_of_source: bool) -> Setting:
        name = node.name
        if name not in self._known:
            remedy = choice(name, self._known) if self._known else "remove it"
            raise node.error(f"{self._owner} has no such parameter; {remedy}")
        parameter = self._known[name]
        if name == "weight" and self._has_ratios:
            raise node.error("has no effect with mixup, whose ratios replace it; remove it")
        if is_of_source and not parameter.is_per_model:
            raise node.error("has one value for all models; move it to the slice's or the recipe's parameters")
        setting = read_setting(node, parameter.type)
        if parameter.is_constant and not setting.is_constant:
            raise node.error(f"{self._owner} takes one value for all tensors; give one number")
        for branch in setting.branches:
            for value in branch.values:
                _check_range(node, parameter, value)
        return setting


def _check_range(node: Node, parameter: Parameter, value: float | int | bool | str) -> None:
    if parameter.choices:
        if value not in parameter.choices:
            raise node.error(f"{value} is unknown; {choice(value, parameter.choices)}")
    elif not parameter.low <= value <= parameter.high:
        upper = "" if parameter.high == float("inf") else f" and at most {parameter.high:g}"
        raise node.error(f"is {value:g}; give a number of at least {parameter.low:g}{upper}")


def _read_form(
    document: Node, entries: Mapping[str, Node], base: ModelReference | None, reader: _SettingReader
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


def _read_models(node: Node, base: ModelReference | None, reader: _SettingReader) -> Slice:
    sources = []
    for item in node.items():
        entries = item.mapping("model", "parameters")
        sources.append(_read_source(item, entries, reader))
    if base is not None and base not in [source.model for source in sources]:
        sources.append(Source(base, None, {}, node.place))
    return _slice(sources, base, {}, node)


def _read_slice(node: Node, base: ModelReference | None, reader: _SettingReader) -> Slice:
    entries = node.mapping("sources", "base_model", "parameters", "residual_weight")
    if "sources" not in entries:
        raise node.error("a slice has no sources; add sources: with a model")
    sources = [
        _read_source(item, item.mapping("model", "layer_range", "parameters"), reader)
        for item in entries["sources"].items()
    ]
    own = _read_model(entries["base_model"]) if "base_model" in entries else base
    return _slice(sources, own, reader.read(entries.get("parameters")), node)


def _slice(sources: list[Source], base: ModelReference | None, parameters: Settings, node: Node) -> Slice:
    seen: set[ModelReference] = set()
    for source in sources:
        if source.model in seen:
            raise UserError(f"{source.place}: model: {source.model} is listed twice in one slice; remove one")
        seen.add(source.model)
    return Slice(tuple(sources), base, parameters, node.place)


def _read_source(item: Node, entries: Mapping[str, Node], reader: _SettingReader) -> Source:
    if "model" not in entries:
        raise item.error("an item has no model; add model: with a folder")
    layers = _read_layers(entries["layer_range"]) if "layer_range" in entries else None
    return Source(
        _read_model(entries["model"]), layers, reader.read(entries.get("parameters"), True), entries["model"].place
    )


def _read_layers(node: Node) -> tuple[int, int]:
    items = node.items()
    if len(items) != 2:
        raise node.error(f"has {len(items)} numbers; give the first layer and the one after the last, such as [0, 8]")
    first, end = (Node(item.value, node.name, item.place).typed(int) for item in items)
    if not 0 <= first < end:
        raise node.error(f"[{first}, {end}] holds no layer; count from 0, the end not included")
    return first, end


def _read_model(node: Node) -> ModelReference:
    """`path`, `path@revision`, either with `+lora`; or a mapping of model, a text or {path, revision}, and lora."""
    if isinstance(node.value, dict):
        entries = node.mapping("model", "lora", "path", "revision")
        if "path" in entries:
            revision = entries["revision"].text() if "revision" in entries else None
            return ModelReference(entries["path"].text(), revision)
        if "model" not in entries:
            raise node.error("names no model; add path:")
        model = _read_model(entries["model"])
        return ModelReference(model.path, model.revision, _read_model(entries["lora"]) if "lora" in entries else None)
    parts = node.text().split("+")
    if len(parts) > 2 or not all(parts):
        raise node.error(f"{node.value} must be path or path+lora; a + cannot be part of a path")
    model, *lora = [_read_path(part, node) for part in parts]
    return ModelReference(model.path, model.revision, lora[0] if lora else None)


def _read_path(text: str, node: Node) -> ModelReference:
    parts = text.split("@")
    if len(parts) > 2 or not all(parts):
        raise node.error(f"{node.value} must be path or path@revision; an @ cannot be part of a path")
    return ModelReference(*parts)


def _read_dtype(entries: Mapping[str, Node], key: str) -> str | None:
    return entries[key].chosen(DTYPES) if key in entries else None


def _read_chat_template(node: Node) -> str:
    template = node.text()
    if template not in CHAT_TEMPLATES and "{" not in template:
        raise node.error(f"{template} is neither a known template nor Jinja; {choice(template, CHAT_TEMPLATES)}")
    return template


def _read_tokenizer(entries: Mapping[str, Node]) -> Tokenizer | None:
    if "tokenizer_source" in entries:
        if "tokenizer" in entries:
            raise entries["tokenizer"].error("is given beside tokenizer_source; remove one of them")
        return Tokenizer(_read_tokenizer_source(entries["tokenizer_source"], entries))
    if "tokenizer" not in entries:
        return None
    block = entries["tokenizer"].mapping("source", "pad_to_multiple_of", "tokens")
    padding = block["pad_to_multiple_of"].typed(int) if "pad_to_multiple_of" in block else None
    if padding is not None and padding < 1:
        raise block["pad_to_multiple_of"].error(f"is {padding}; give a number from 1 on")
    tokens = block["tokens"].entries() if "tokens" in block else {}
    return Tokenizer(
        _read_tokenizer_source(block["source"], entries) if "source" in block else "union",
        {token: _read_token(node) for token, node in tokens.items()},
        padding,
    )


def _read_tokenizer_source(node: Node, entries: Mapping[str, Node]) -> str | ModelReference:
    if node.value == "base" and "base_model" not in entries:
        raise node.error("base is asked for, but there is no base_model; add one, or write union")
    return node.value if node.value in ("union", "base") else _read_model(node)


def _read_token(node: Node) -> TokenSource:
    entries = node.mapping("source", "force")
    force = "force" in entries and bool(entries["force"].typed(bool))
    if "source" not in entries:
        return TokenSource("default", force=force)
    source = entries["source"]
    if not isinstance(source.value, dict) or "kind" not in source.value:
        return TokenSource("model", _read_model(source), force=force)
    keys = source.mapping("kind", "model", "token", "token_id")
    kind = keys["kind"].chosen(("zero", "model_token"))
    if kind == "zero":
        return TokenSource("zero", force=force)
    if "model" not in keys or ("token" in keys) == ("token_id" in keys):
        raise source.error("model_token needs model, and either token or token_id; correct these")
    return TokenSource(
        "model_token",
        _read_model(keys["model"]),
        keys["token"].text() if "token" in keys else None,
        keys["token_id"].typed(int) if "token_id" in keys else None,
        force,
    )


def _read_seed(node: Node) -> int:
    seed = node.typed(int)
    if seed < 0:
        raise node.error(f"is {seed}; give a number from 0 on")
    return seed


def _check_seed(node: Node, recipe: Recipe) -> None:
    mask = recipe.mask.name if recipe.mask else recipe.method.own_mask
    is_drawn = recipe.mixup is not None and recipe.mixup.is_drawn
    if not is_drawn and not (mask and MASKS[mask].is_random):
        raise node.error("has no effect, because nothing is random; remove it")


def _read_mixup(node: Node, recipe: Recipe) -> Mixup:
    if not recipe.method.takes_ratios:
        raise node.error(f"{recipe.method.name} takes no ratios; remove mixup or choose another method")
    entries = node.mapping("alpha", "ratios")
    if len(entries) != 1:
        raise node.error("give either alpha or ratios")
    numbers = {len(one.inputs(recipe.method.base)) for one in recipe.slices}
    if len(numbers) > 1:
        raise node.error(f"slices merge {min(numbers)} to {max(numbers)} models; ratios need one number of models")
    models = numbers.pop()
    if "alpha" in entries:
        alpha = entries["alpha"].typed(float)
        return Mixup(draw_ratios(alpha, models, recipe.seed), alpha)
    ratios = entries["ratios"]
    given = [Node(one.value, ratios.name, one.place).typed(float) for one in _as_items(ratios)]
    try:
        return Mixup(given_ratios(given, models))
    except UserError:
        raise ratios.error(f"give {models} numbers between 0 and 1 that sum to 1, one for each model") from None


def _as_items(node: Node) -> list[Node]:
    return node.items() if isinstance(node.value, list) else [node]


def _check_slice(one: Slice, recipe: Recipe) -> None:
    """The base, the number of models, the ranges of layers, and that each required parameter is given somewhere."""
    method = recipe.method
    needs_base = method.base in (Base.REQUIRED, Base.FIRST)
    if needs_base and one.base is None:
        raise UserError(f"{one.place}: base_model: {method.name} needs a base; add base_model: with a model")
    if needs_base and one.base_source is None:
        raise UserError(f"{one.place}: sources: the base {one.base} is not among them; add it, with its layer_range")
    _check_number_of_models(one, method)
    lengths = {source.layers[1] - source.layers[0] for source in one.sources if source.layers}
    if len(lengths) > 1:
        shown = " and ".join(map(str, sorted(lengths)))
        raise UserError(f"{one.place}: layer_range: the sources have {shown} layers; give ranges of one length")
    _check_required(one, recipe)


def _check_number_of_models(one: Slice, method: RecipeMethod) -> None:
    models = [source for source in one.sources if method.base is Base.INPUT or source.model != one.base]
    least, most = method.models
    if least <= len(models) <= (most or len(models)):
        return
    wanted = str(least) if least == most else f"{least} or more" if most is None else f"{least} to {most}"
    besides = "" if method.base is Base.INPUT else " besides the base"
    noun = "model" if wanted == "1" else "models"
    raise UserError(f"{one.place}: {method.name} merges {wanted} {noun}{besides}, not {len(models)}; correct the list")


def _check_required(one: Slice, recipe: Recipe) -> None:
    for name, parameter in recipe.parameters.items():
        is_ratio = name == "weight" and recipe.mixup is not None
        if parameter.default is not None or is_ratio:
            continue
        if any(name in level for level in (one.parameters, *recipe.levels)):
            continue
        if not parameter.is_per_model:
            raise UserError(f"{recipe.place}: {name}: {recipe.method.name} needs it; add it to parameters")
        for source in one.inputs(recipe.method.base):
            if name not in source.parameters:
                raise UserError(
                    f"{source.place}: {name}: {recipe.method.name} needs it, and {source.model} has none; "
                    "add it to parameters"
                )
