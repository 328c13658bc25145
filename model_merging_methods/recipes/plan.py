"""What a recipe merges: for each tensor of the merged model the stored tensors, and the numbers of its formula."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from model_merging_methods.checkpoints.aligned_models import align_models
from model_merging_methods.checkpoints.sliced_folder import (
    LayerSlice,
    SlicedFolder,
    count_layers,
    is_before_layers,
    layer_of,
    slice_places,
)
from model_merging_methods.checkpoints.vocabulary_matrices import is_vocabulary_matrix
from model_merging_methods.masks import MASKS
from model_merging_methods.merge_parameters import MergeParameters, mask_of, parameters_of
from model_merging_methods.method import Value
from model_merging_methods.methods import METHODS
from model_merging_methods.opened_models import Part
from model_merging_methods.recipes.recipe import ModelReference, Recipe, Slice, Source
from model_merging_methods.recipes.settings import Rule, find_rule
from model_merging_methods.recipes.vocabulary import BuiltVocabulary, Folders
from utils.findings import Findings

Values = tuple[tuple[str, Value], ...]


@dataclass(frozen=True)
class PlacedSlice:
    """A slice as layers `first` … of the merged model: the merged models and θ0's, each with its layers."""

    part: Slice
    first: int
    length: int
    inputs: Sequence[Source]
    base: Source | None

    def position(self, layer: int) -> float:
        """The place of a merged layer in the slice, from 0 to 1."""
        return (layer - self.first) / (self.length - 1) if self.length > 1 else 1.0


def place_slices(recipe: Recipe, folders: Folders) -> list[PlacedSlice]:
    """The slices in order. Raises UserError for layers that a model does not have, and for a wrong number of models."""
    placed: list[PlacedSlice] = []
    for part in recipe.slices:
        inputs, base = _inputs_and_base(recipe, part)
        lengths = {}
        for source in [*inputs, *([base] if base else [])]:
            layers = count_layers(folders[source.model])
            if source.layers and source.layers[1] > layers:
                raise source.node.error(
                    f"layer_range: {list(source.layers)} is outside of {source.model}, which has {layers} layers"
                )
            lengths[source.model] = source.layers[1] - source.layers[0] if source.layers else layers
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{model} {length}" for model, length in lengths.items())
            raise part.node.error(f"models: have different numbers of layers ({shown}); give ranges of equal length")
        first = placed[-1].first + placed[-1].length if placed else 0
        placed.append(PlacedSlice(part, first, next(iter(lengths.values())), inputs, base))
    _check_numbers(recipe, placed)
    return placed


def _inputs_and_base(recipe: Recipe, part: Slice) -> tuple[list[Source], Source | None]:
    """The models whose values are merged, in order, and θ0's. A base that is not listed is an input without settings,
    or θ0 with the layers of the others."""
    base, kind = recipe.base_of(part), recipe.method.base
    listed = next((source for source in part.sources if source.model == base), None)
    if base is not None and listed is None:
        listed = Source(base, part.sources[0].layers, {}, part.node)
    if kind == "none":
        unlisted = [listed] if listed and listed not in part.sources else []
        return [*part.sources, *unlisted], None
    others = [source for source in part.sources if source.model != base]
    return ([listed, *others], None) if kind == "first" else (others, listed)


def _check_numbers(recipe: Recipe, placed: Sequence[PlacedSlice]) -> None:
    method = METHODS[recipe.method.method]
    least, most = method.models
    if recipe.method_name == "passthrough":
        least, most = 1, 1
    for one in placed:
        number = len(one.inputs)
        if not least <= number <= (most or number):
            wanted = f"{least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"
            besides = " besides the base" if one.base else ""
            raise one.part.node.error(
                f"models: {recipe.method_name} takes {wanted}{besides}, not {number}; change the list"
            )
    if len({len(one.inputs) for one in placed}) > 1 and method.sees_model:
        raise recipe.node.error(
            f"slices: {method.name} looks at whole models, so each slice needs the same number of sources"
        )


def headline_parameters(recipe: Recipe) -> MergeParameters:
    """The parameters of a recipe's first rules, without its models: for records, and to tell merges apart."""
    placed = [PlacedSlice(part, 0, 1, *_inputs_and_base(recipe, part)) for part in recipe.slices]
    return TensorNumbersOfRecipe(recipe, placed).parameters(None, [None] * len(placed[0].inputs))


def make_parts(
    recipe: Recipe,
    placed: Sequence[PlacedSlice],
    folders: Folders,
    roles: Mapping[ModelReference, str],
    vocabulary: BuiltVocabulary | None,
    findings: Findings,
) -> list[Part]:
    """The parts of the merged model, one for each number of models; with the reasons among the findings, none for
    models that do not fit together."""
    parts, total = [], placed[-1].first + placed[-1].length
    for number in dict.fromkeys(len(one.inputs) for one in placed):
        own = {one.first: one for one in placed if len(one.inputs) == number}
        columns = [{first: one.inputs[i] for first, one in own.items()} for i in range(number)]
        bases = {first: one.base for first, one in own.items()}
        views = [_view(recipe, column, own, total, folders, vocabulary) for column in columns]
        base = _view(recipe, bases, own, total, folders, vocabulary) if None not in bases.values() else views[0]
        models = align_models([base, *views], lambda name: _excludes(recipe, name), findings)
        if models is None:
            return []
        if recipe.out_dtype is None:
            models.take_widest_dtypes()
        numbers = TensorNumbersOfRecipe(recipe, placed)
        own_parameters = {}
        for name in models.forms:
            own_names = [view.places[name].name if name in view.places else name for view in views]
            own_parameters[name] = numbers.parameters(name, own_names)
        names = ["+".join(dict.fromkeys(roles[source.model] for source in column.values())) for column in columns]
        parts.append(Part(models, _distinct(names), own_parameters))
    return parts


def _view(
    recipe: Recipe,
    sources: Mapping[int, Source],
    placed: Mapping[int, PlacedSlice],
    total: int,
    folders: Folders,
    vocabulary: BuiltVocabulary | None,
) -> SlicedFolder:
    slices = {}
    for first, source in sources.items():
        start = source.layers[0] if source.layers else 0
        slices[first] = LayerSlice(folders[source.model], start, start + placed[first].length)
    places = slice_places(slices, total)
    rebuilt = {}
    for name, place in places.items():
        if vocabulary is not None and is_vocabulary_matrix(name):
            matrix = vocabulary.matrix(folders, place)
            if matrix is not None:
                rebuilt[name] = matrix
    giver = folders[next(iter(sources.values())).model]
    shared = vocabulary.tokens if vocabulary else folders[recipe.base or recipe.models[0]].tokens()
    return SlicedFolder(giver.folder, giver.config, places, shared, rebuilt)


class TensorNumbersOfRecipe:
    """The parameters of each tensor of a recipe's merged model."""

    def __init__(self, recipe: Recipe, placed: Sequence[PlacedSlice]):
        self._recipe = recipe
        self._placed = placed
        self._of_values = cache(self._make)

    def parameters(self, name: str | None, own_names: Sequence[str | None]) -> MergeParameters:
        """Those of a tensor, whose names in the inputs are `own_names`; None: of the first rules, whatever they filter,
        before the layers."""
        layer = None if name is None else layer_of(name)
        if layer is None:
            one, x = self._placed[0 if name is None or is_before_layers(name) else -1], 0.0
        else:
            one = next(one for one in self._placed if one.first <= layer < one.first + one.length)
            x = one.position(layer)
        method, values = self._recipe.method, {}
        for key, target in method.parameters.items():
            option = method.option(target.option)
            if option.is_per_model:
                found = [
                    self._value(key, one, find_rule([source.settings, *one.part.levels], key, own), x, source)
                    for source, own in zip(one.inputs, own_names, strict=True)
                ]
                value = None if None in found else tuple(found)
            else:
                value = self._value(key, one, find_rule(one.part.levels, key, name), x)
            if value is not None:
                values[target.option] = value
        for option, value in method.defaults.items():
            values.setdefault(option, value)
        if "task_vectors" in METHODS[method.method].options and method.base == "optional":
            values.setdefault("task_vectors", one.base is not None)
        return self._of_values(tuple(values.items()))

    def _value(
        self, key: str, one: PlacedSlice, rule: Rule | None, x: float, source: Source | None = None
    ) -> Value | None:
        """The value of a parameter; None for a default."""
        if rule is None:
            if key in self._recipe.method.required:
                node = source.node if source else self._recipe.node
                of = f" of {source.model}" if source else ""
                raise node.error(f"{key}: is missing{of}, and {self._recipe.method_name} has no default; add it")
            return self._default(key) if source else None
        value = rule.at(x)
        convert = self._recipe.method.parameters[key].convert
        return convert(value) if convert else value

    def _default(self, key: str) -> Value:
        """The default of an option with a number for each model, of which some may be given."""
        target = self._recipe.method.parameters[key].option
        default = self._recipe.method.defaults.get(target, self._recipe.method.option(target).default)
        return float(default)

    def _make(self, values: Values) -> MergeParameters:
        recipe, own, mask = self._recipe, dict(values), None
        if recipe.method.mask:
            of_mask = {name: own.pop(name) for name in MASKS[recipe.method.mask].options if name in own}
            mask = mask_of(recipe.method.mask, weight_format=recipe.weight_format, **of_mask)
        return parameters_of(
            recipe.method.method,
            mask=mask,
            seed=recipe.seed,
            dtype=recipe.out_dtype,
            exclude_param_names_regex=recipe.exclude,
            **own,
        )


def _excludes(recipe: Recipe, name: str) -> bool:
    return any(re.search(pattern, name) for pattern in recipe.exclude)


def _distinct(names: Sequence[str]) -> list[str]:
    """Names, with a number appended to repeated ones."""
    return [f"{name}.{names[:i].count(name) + 1}" if name in names[:i] else name for i, name in enumerate(names)]
