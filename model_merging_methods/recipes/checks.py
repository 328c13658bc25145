"""Checks of a recipe that need no weights: of its own parts, and of its models' sizes."""

from __future__ import annotations

from collections.abc import Mapping

from model_merging_methods.recipes.mergekit_methods import Base, RecipeMethod
from model_merging_methods.recipes.recipe import Recipe, Slice, Source
from model_merging_methods.recipes.references import ModelReference
from utils.errors import UserError


def check_slice(one: Slice, recipe: Recipe) -> None:
    """The base, the number of models, the ranges of layers, and that each required parameter is given somewhere."""
    method = recipe.method
    needs_base = method.base in (Base.REQUIRED, Base.FIRST)
    if needs_base and one.base is None:
        raise UserError(f"{one.place}: base_model: {method.name} needs a base; add base_model: with a model")
    if one.base and one.base_source is None and (needs_base or method.base_option):
        raise UserError(f"{one.place}: sources: the base {one.base} is not among them; add it, with its layer_range")
    _check_number_of_models(one, method)
    _check_mask(one, recipe)
    lengths = {source.layers[1] - source.layers[0] for source in one.sources if source.layers}
    if len(lengths) > 1:
        shown = " and ".join(map(str, sorted(lengths)))
        raise UserError(f"{one.place}: layer_range: the sources have {shown} layers; give ranges of one length")
    _check_required(one, recipe)


def _check_mask(one: Slice, recipe: Recipe) -> None:
    """A mask of task vectors needs a base apart from the models."""
    mask = recipe.mask
    if mask is None or mask.weight_format != "delta_weight":
        return
    if recipe.method.base in (Base.INPUT, Base.FIRST):
        raise UserError(
            f"{mask.place}: mask: {recipe.method.name} uses no task vectors that can be masked; choose another method, "
            "a mask with weight_format: finetuned_weight, or a recipe of our options (docs/recipes.md)"
        )
    if one.base_source is None:
        raise UserError(f"{mask.place}: mask: masking task vectors needs a base; add base_model: with a model")


def _check_number_of_models(one: Slice, method: RecipeMethod) -> None:
    models = [source for source in one.sources if method.base is Base.INPUT or source.model != one.base]
    least, most = method.models
    if least <= len(models) <= (most or len(models)):
        return
    wanted = str(least) if least == most else f"{least} or more" if most is None else f"{least} to {most}"
    besides = "" if method.base is Base.INPUT else " besides the base"
    noun = "model" if wanted == "1" else "models"
    raise UserError(
        f"{one.place}: models: {method.name} merges {wanted} {noun}{besides}, not {len(models)}; correct the list"
    )


def _check_required(one: Slice, recipe: Recipe) -> None:
    for name, parameter in recipe.parameters.items():
        is_ratio = name == "weight" and recipe.mixup is not None
        if parameter.default is not None or is_ratio:
            continue
        if any(name in level for level in (one.parameters, *recipe.levels)):
            continue
        if not parameter.is_per_model:
            raise UserError(
                f"{recipe.place_of('merge_method')}: {name}: {recipe.method.name} needs it; add it to parameters"
            )
        for source in one.inputs(recipe.method.base):
            if name not in source.parameters:
                raise UserError(
                    f"{source.place}: {name}: {recipe.method.name} needs it, and {source.model} has none; "
                    "add it to parameters"
                )


def check_layers(recipe: Recipe, number_of_layers: Mapping[ModelReference, int]) -> None:
    """Raise UserError for layers that a model does not have, or sources of a slice with unlike numbers of layers."""
    for one in recipe.slices:
        lengths: dict[int, Source] = {}
        for source in one.sources:
            first, end = layers_of(source, number_of_layers)
            if end > number_of_layers[source.model]:
                raise UserError(
                    f"{source.place}: layer_range: [{first}, {end}] goes beyond the {number_of_layers[source.model]} "
                    f"layers of {source.model}; give a range inside"
                )
            lengths.setdefault(end - first, source)
        if len(lengths) > 1:
            (a, x), (b, y) = list(lengths.items())[:2]
            raise UserError(
                f"{y.place}: layer_range: {y.model} has {b} layers here and {x.model} {a}; "
                "give ranges of one length, or models of one shape"
            )


def check_vocabulary_sizes(recipe: Recipe, sizes: Mapping[ModelReference, int]) -> None:
    """Raise UserError for inputs whose numbers of tokens differ, if the recipe builds no tokenizer."""
    if recipe.tokenizer is not None:
        return
    sources = [source for one in recipe.slices for source in one.sources]
    first = sources[0]
    for source in sources:
        if sizes[source.model] != sizes[first.model]:
            raise UserError(
                f"{source.place}: model: {source.model} has {sizes[source.model]} tokens and {first.model} "
                f"{sizes[first.model]}; add tokenizer_source: union"
            )


def layers_of(source: Source, number_of_layers: Mapping[ModelReference, int]) -> tuple[int, int]:
    """The layers [first, end) that a source contributes."""
    return source.layers or (0, number_of_layers[source.model])
