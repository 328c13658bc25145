"""Recipes: merges as mergekit's YAML describes them, and what this toolkit adds to that language.

    merge_method: task_arithmetic        # mergekit's methods, and ours by their names
    base_model: org/base
    models:
      - model: org/math@v1.0             # path, path@revision, path+lora
        name: math                       # ours: for records and random masks (default: the folder's name)
        parameters: {weight_mask_rate: 0.3}
      - model: org/code
    parameters: {lambda: 0.5, weight_mask_rate: 0.2}
    mask: dare                           # ours: mask the models first; its options are parameters like others
    mixup: {alpha: 0.5}                  # ours: M3's ratios, drawn with α, or given as {ratios: [0.3, 0.7]}, or for
                                         # two models as points over the layers, {ratio_by_layer: [0.2, 0.8]}
    seed: 0                              # ours: of ratios and random masks
    exclude_param_names_regex: [norm]    # ours: parameters that keep the base's values

`mask: {name: dare, weight_format: finetuned_weight}` masks weights, not task vectors. Ratios follow the order of the
models, the base left out. They replace the parameter `weight`.

mergekit ignores keys that it does not know. Here they are errors, each with its line.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from model_merging_methods.masks import MASKS
from model_merging_methods.mixup import Mixup
from model_merging_methods.recipes.mergekit_methods import MASK_PARAMETERS, Base, Parameter, RecipeMethod
from model_merging_methods.recipes.references import ModelReference
from model_merging_methods.recipes.settings import Setting, Settings
from model_merging_methods.recipes.tokenizer import TOKENIZER_KEYWORDS, Tokenizer


@dataclass(frozen=True)
class Source:
    """An input of a slice: the layers [a, b) of a model (None: all), its own parameters, and the name that records and
    random masks use for it (None: its folder's)."""

    model: ModelReference
    layers: tuple[int, int] | None
    parameters: Settings
    place: str
    name: str | None = None


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

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return MASK_PARAMETERS[self.name]


@dataclass(frozen=True)
class Recipe:
    """One merge. Parameters of the module and of the whole recipe are `levels`, in the order of a look-up. `document`
    holds the plain values that it was read from, `places` the "FILE:LINE" of its keys."""

    document: Mapping[str, Any]
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
    places: Mapping[str, str]
    exclude_param_names_regex: tuple[str, ...] = ()

    @property
    def is_random(self) -> bool:
        """Whether the result depends on the seed."""
        mask = self.mask.name if self.mask else self.method.own_mask
        return (self.mixup is not None and self.mixup.is_drawn) or (mask is not None and MASKS[mask].is_random)

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
    def given_names(self) -> dict[ModelReference, str]:
        """The names that the recipe gives to models."""
        return {source.model: source.name for one in self.slices for source in one.sources if source.name}

    def parts_without_effect(self, names: Collection[str]) -> list[str]:
        """Lines on parameters that the method does not use, filters that fit none of these names of tensors, and
        patterns that match none."""
        place = self.place_of("exclude_param_names_regex")
        unmatched = [one for one in self.exclude_param_names_regex if not any(re.search(one, name) for name in names)]
        lines = [f"{place}: exclude_param_names_regex: {pattern} matches no tensor" for pattern in unmatched]
        unused = [one for one in self._settings if not self.parameters[one.name].has_effect]
        lines += [f"{one.place}: {one.name}: has no effect on {self.method.name}" for one in unused]
        return lines + [
            f"{setting.place}: {setting.name}: the filter {branch.filter} fits no tensor"
            for setting in self._settings
            for branch in setting.branches
            if not any(map(branch.applies_to, names))
        ]

    def place_of(self, *names: str) -> str:
        """The place of the first of these parameters or keys that the recipe has; its own if it has none."""
        places = {**self.places, **{setting.name: setting.place for setting in reversed(self._settings)}}
        return next((places[name] for name in names if name in places), self.place)

    @property
    def _settings(self) -> list[Setting]:
        of_sources = [source.parameters for one in self.slices for source in one.sources]
        levels = [*of_sources, *(one.parameters for one in self.slices), *self.levels]
        return [setting for level in levels for setting in level.values()]

    @property
    def parameters(self) -> dict[str, Parameter]:
        """The parameters of the method and the mask by name."""
        return parameters_of(self.method, self.mask)


def with_models(value: Any, names: Mapping[str, Any], within: str = "") -> Any:
    """A recipe's plain values with other names of its models; `within` is the key that they belong to."""
    if isinstance(value, list):
        return [with_models(one, names) for one in value]
    if not isinstance(value, dict):
        return value
    renamed = {}
    for key, one in value.items():
        of_tokenizer = key == "tokenizer_source" or (within == "tokenizer" and key == "source")
        is_model = key in ("model", "base_model", "tokenizer_source", "source") and _as_text(one) in names
        if is_model and not (of_tokenizer and one in TOKENIZER_KEYWORDS):
            renamed[key] = names[_as_text(one)]
        else:
            renamed[key] = with_models(one, names, key)
    return renamed


def _as_text(model: Any) -> str | None:
    """A model that is written as a text or as a mapping of path, revision and lora, as a text."""
    if not isinstance(model, dict) or "kind" in model:  # a token's row
        return model if isinstance(model, str) else None
    if "path" in model:
        return str(ModelReference(model["path"], model.get("revision")))
    whole, lora = _as_text(model.get("model")), _as_text(model.get("lora"))
    return f"{whole}+{lora}" if whole and lora else whole


def parameters_of(method: RecipeMethod, mask: RecipeMask | None) -> dict[str, Parameter]:
    return {**method.parameters, **(mask.parameters if mask else {})}
