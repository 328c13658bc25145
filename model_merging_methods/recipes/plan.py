"""The plan of a recipe: for each tensor of the merged model its inputs, and the mask and method with their options."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from model_merging_methods.checkpoints.tensor_names import LAYER
from model_merging_methods.checkpoints.vocabulary_matrices import INPUT_EMBEDDINGS, OUTPUT_EMBEDDINGS
from model_merging_methods.recipes.checks import check_layers, layers_of
from model_merging_methods.recipes.mergekit_methods import BadValue, Parameter, Steps
from model_merging_methods.recipes.recipe import Recipe, Slice, Source
from model_merging_methods.recipes.references import ModelReference
from model_merging_methods.recipes.settings import Scalar, Setting, first_value
from utils.errors import UserError

_EMBEDDINGS = re.compile(r"(?:^|\.)(?:\w*embed\w*|wte|wpe)(?:\.|$)")  # of tokens and positions, and their norms


class Input(NamedTuple):
    """A tensor of a model."""

    model: ModelReference
    name: str


@dataclass(frozen=True)
class TensorMerge:
    """How one tensor of the merged model is made.

    base: θ0, if the method uses one. inputs: the models' tensors in the order of the recipe, as many as each option
    that has one value per model has values.
    """

    name: str
    base: Input | None
    inputs: tuple[Input, ...]
    steps: Steps


class _Output(NamedTuple):
    """A tensor of the merged model, at position x ∈ [0, 1] of a slice: its name in each of the sources, which filters
    see, and where these are tensors of other names, as embeddings lent for a tied head, the tensors."""

    name: str
    slice: Slice
    x: float
    names: Mapping[ModelReference, str]
    lent: Mapping[ModelReference, str] = MappingProxyType({})

    def tensor(self, model: ModelReference) -> Input:
        return Input(model, self.lent.get(model, self.names[model]))


def number_of_output_layers(recipe: Recipe, number_of_layers: Mapping[ModelReference, int]) -> int:
    ranges = [layers_of(one.sources[0], number_of_layers) for one in recipe.slices]
    return sum(end - first for first, end in ranges)


def plan_tensors(
    recipe: Recipe,
    number_of_layers: Mapping[ModelReference, int],
    names: Mapping[ModelReference, Sequence[str]],
) -> list[TensorMerge]:
    """All tensors of the merged model: embeddings, layers, final norm and output matrix.

    number_of_layers, names: of each model of the recipe, the names in any order. Raises UserError for tensors that a
    model lacks, for parameters that have no value for a tensor, and for values outside their range.
    """
    check_layers(recipe, number_of_layers)
    return [_tensor_merge(recipe, output) for output in _outputs(recipe, number_of_layers, names)]


def _outputs(
    recipe: Recipe, number_of_layers: Mapping[ModelReference, int], names: Mapping[ModelReference, Sequence[str]]
) -> Iterator[_Output]:
    parts = {model: _Parts.of(names[model]) for one in recipe.slices for model in _models(one)}
    first, last = recipe.slices[0], recipe.slices[-1]
    yield from _outside(first, {model: parts[model].embeddings for model in _models(first)}, parts)
    layer = 0
    for one in recipe.slices:
        ranges = {source.model: layers_of(source, number_of_layers) for source in one.sources}
        start, end = ranges[one.sources[0].model]
        for i in range(end - start):
            own = {model: parts[model].layers.get(begin + i, {}) for model, (begin, _) in ranges.items()}
            x = i / (end - start - 1) if end - start > 1 else 1.0
            for before, after in dict.fromkeys(around for of_model in own.values() for around in of_model):
                for model, of_model in own.items():
                    if (before, after) not in of_model:
                        raise _lacks(one, model, f"{before}{ranges[model][0] + i}{after}")
                found = {model: of_model[before, after] for model, of_model in own.items()}
                yield _Output(f"{before}{layer}{after}", one, x, found)
            layer += 1
    heads = {name for of_model in parts.values() for name in of_model.others if name.endswith(OUTPUT_EMBEDDINGS)}
    yield from _outside(last, {model: parts[model].others for model in _models(last)}, parts, heads)


def _models(one: Slice) -> list[ModelReference]:
    return [source.model for source in one.sources]


@dataclass(frozen=True)
class _Parts:
    """A model's names: of embeddings, of each layer (by what is before and after the layer's number), and others."""

    embeddings: list[str]
    layers: dict[int, dict[tuple[str, str], str]]
    others: list[str]

    @staticmethod
    def of(names: Sequence[str]) -> _Parts:
        parts = _Parts([], {}, [])
        for name in sorted(names):
            found = LAYER.fullmatch(name)
            if found:
                around = (found["before"], found["after"])
                parts.layers.setdefault(int(found["number"]), {})[around] = name
            elif _EMBEDDINGS.search(name) and not name.endswith(OUTPUT_EMBEDDINGS):
                parts.embeddings.append(name)
            else:
                parts.others.append(name)
        return parts


def _outside(
    one: Slice,
    own: Mapping[ModelReference, Sequence[str]],
    parts: Mapping[ModelReference, _Parts],
    heads: Collection[str] = (),
) -> Iterator[_Output]:
    """Tensors outside the layers, and `heads`: output matrices of any model. A model without one lends its input
    embeddings."""
    for name in sorted({*heads, *(name for of_model in own.values() for name in of_model)}):
        lent = {}
        for model, of_model in own.items():
            tied = [n for n in parts[model].embeddings if n.endswith(INPUT_EMBEDDINGS)]
            if name not in of_model:
                if not name.endswith(OUTPUT_EMBEDDINGS) or not tied:
                    raise _lacks(one, model, name)
                lent[model] = tied[0]
        yield _Output(name, one, 0.0, dict.fromkeys(own, name), lent)


def _lacks(one: Slice, model: ModelReference, name: str) -> UserError:
    source = next(source for source in one.sources if source.model == model)
    return UserError(f"{source.place}: model: {model} has no tensor {name}, unlike others; give models of one shape")


def _tensor_merge(recipe: Recipe, output: _Output) -> TensorMerge:
    method, one = recipe.method, output.slice
    sources = one.inputs(method.base)
    base = None if one.base_source in sources else one.base_source
    look_up = _LookUp(recipe, output, sources)
    try:
        steps = method.steps({name: look_up.value(parameter) for name, parameter in method.parameters.items()})
    except BadValue as error:
        raise look_up.error(error) from None
    options, mask, mask_options = dict(steps.options), steps.mask, steps.mask_options
    if method.base_option is not None:
        options[method.base_option] = base is not None
    if recipe.mask is not None:
        if mask is not None:
            raise UserError(f"{recipe.mask.place}: mask: {method.name} with rescale has its own mask; remove one")
        mask = recipe.mask.name
        mask_options = {name: look_up.value(parameter) for name, parameter in recipe.mask.parameters.items()}
    if recipe.mixup is not None and "weight" in options:
        options["weight"] = recipe.mixup.ratios
    return TensorMerge(
        output.name,
        None if base is None else output.tensor(base.model),
        tuple(output.tensor(source.model) for source in sources),
        Steps(steps.method, options, mask, mask_options),
    )


@dataclass(frozen=True)
class _LookUp:
    """The values of parameters for one tensor."""

    recipe: Recipe
    output: _Output
    sources: tuple[Source, ...]

    def value(self, parameter: Parameter) -> Any:
        """The value, or for a parameter that has one per model a tuple of the sources' values."""
        if not parameter.is_per_model:
            return self._one(parameter, None)
        return tuple(self._one(parameter, source) for source in self.sources)

    def error(self, bad: BadValue) -> UserError:
        """The error at the setting of the parameter, or at the model if it has the default."""
        source = self.sources[bad.model]
        name = self.output.names[source.model]
        found = first_value(self._levels(bad.parameter, source), name, self.output.x)
        return UserError(f"{found[1].place if found else source.place}: {bad.parameter}: {bad} (for {name})")

    def _one(self, parameter: Parameter, source: Source | None) -> Scalar:
        # Settings of one model see its own name of the tensor, shared ones that of the output.
        name = self.output.name if source is None else self.output.names[source.model]
        found = first_value(self._levels(parameter.name, source), name, self.output.x)
        if found is not None:
            return found[0]
        if parameter.name == "weight" and self.recipe.mixup is not None:
            return 0.0  # replaced by the ratios
        if parameter.default is None:
            place = self.recipe.place_of(parameter.name, "parameters") if source is None else source.place
            raise UserError(
                f"{place}: {parameter.name}: has no value for {name}; add one that no filter limits, such as - value: 1"
            )
        return parameter.default

    def _levels(self, name: str, source: Source | None) -> list[Setting | None]:
        levels = [self.output.slice.parameters, *self.recipe.levels]
        if source is not None:
            levels = [source.parameters, *levels]
        return [level.get(name) for level in levels]
