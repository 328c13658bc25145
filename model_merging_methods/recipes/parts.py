"""The parts of a recipe's merged model: stored tensors under the merged model's names, and the parameters of each."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from model_merging_methods.checkpoints.aligned_models import align_models
from model_merging_methods.checkpoints.sliced_folder import SlicedFolder
from model_merging_methods.checkpoints.tensor_names import LAYER, count_layers, layer_of
from model_merging_methods.checkpoints.vocabulary_matrices import Folder, Origin, is_vocabulary_matrix
from model_merging_methods.merge_parameters import MergeParameters, mask_of, parameters_of
from model_merging_methods.methods import METHODS
from model_merging_methods.opened_models import Part
from model_merging_methods.recipes.plan import Input, TensorMerge, number_of_output_layers, plan_tensors
from model_merging_methods.recipes.recipe import Recipe
from model_merging_methods.recipes.references import ModelReference
from model_merging_methods.recipes.vocabulary import BuiltVocabulary
from utils.errors import UserError
from utils.findings import Findings

Folders = Mapping[ModelReference, Folder]
LayerTensor = tuple[str, tuple[int, ...]]  # the ending of a name, and a shape


def plan_recipe(recipe: Recipe, folders: Folders) -> list[TensorMerge]:
    """The tensors of the merged model. Raises UserError for layers or tensors that a model lacks."""
    names = {model: list(folder.tensors) for model, folder in folders.items()}
    plan = plan_tensors(recipe, {model: count_layers(own) for model, own in names.items()}, names)
    method = METHODS[plan[0].steps.method]
    if method.sees_model and len(set(map(_kind, plan))) > 1:
        raise UserError(
            f"{recipe.place_of('slices')}: slices: {recipe.method.name} looks at whole models, so each slice needs the "
            "same number of sources"
        )
    for name in (name for statistic in method.statistics if not statistic.by_tensor for name in statistic.depends_on):
        if len({one.steps.options.get(name) for one in plan}) > 1:
            raise UserError(
                f"{recipe.place_of(name)}: {name}: {recipe.method.name} looks at whole models, so all tensors need one "
                "value; move it to the recipe's parameters"
            )
    if len({one.steps.mask for one in plan}) > 1:
        place = recipe.place_of("rescale")
        raise UserError(f"{place}: rescale: must be on or off for all tensors; give it without filters")
    check_layers_alike(recipe, plan, folders)
    return plan


def check_layers_alike(recipe: Recipe, plan: Sequence[TensorMerge], folders: Folders) -> None:
    """Raise UserError unless all layers of the merged model have the tensors and shapes of a model's own layers: slices
    of models of other sizes make no model."""
    own = {model: _layer_kinds(folder, folder.tensors) for model, folder in folders.items()}
    known = set.union(*own.values())
    by_layer: dict[int, set[LayerTensor]] = {}
    source_of: dict[int, ModelReference] = {}
    for one in plan:
        layer, first = layer_of(one.name), one.inputs[0]
        if layer is not None:
            source_of[layer] = first.model
            shape = folders[first.model].tensors[first.name].shape
            by_layer.setdefault(layer, set()).add((LAYER.fullmatch(one.name)["after"], shape))
    number = number_of_output_layers(recipe, {model: count_layers(folder.tensors) for model, folder in folders.items()})
    for layer in range(number):
        if frozenset(by_layer.get(layer, ())) not in known:
            raise UserError(
                f"{recipe.place_of('slices')}: layer_range: merged layer {layer} lacks tensors that other layers have; "
                "complete the models' files, or choose layers of one model"
            )
    kinds = [own[model] for model in dict.fromkeys(source_of.values())]
    if len(kinds) > 1 and not set.intersection(*kinds):
        names = " and ".join(map(str, dict.fromkeys(source_of.values())))
        raise UserError(
            f"{recipe.place_of('slices')}: slices: layers of {names} differ in tensors or shapes; "
            "stack models of one size"
        )


def _layer_kinds(folder: Folder, names: Iterable[str]) -> set[frozenset[LayerTensor]]:
    """The sets of tensors, by ending of the name and shape, that a model's layers have."""
    layers: dict[int, set[LayerTensor]] = {}
    for name in names:
        layer = layer_of(name)
        if layer is not None:
            layers.setdefault(layer, set()).add((LAYER.fullmatch(name)["after"], folder.tensors[name].shape))
    return {frozenset(tensors) for tensors in layers.values()}


def make_parts(
    recipe: Recipe,
    plan: Sequence[TensorMerge],
    folders: Folders,
    roles: Mapping[ModelReference, str],
    vocabulary: BuiltVocabulary | None,
    findings: Findings,
) -> list[Part]:
    """The parts of the merged model, one for each number of models, with and without a base; with the reasons among the
    findings, none for models that do not fit together."""
    parts = []
    for number, has_base in dict.fromkeys(map(_kind, plan)):
        own = [one for one in plan if _kind(one) == (number, has_base)]
        inputs = [{one.name: one.inputs[i] for one in own} for i in range(number)]
        views = [_view(recipe, column, folders, vocabulary) for column in inputs]
        bases = {one.name: one.base for one in own}
        base = _view(recipe, bases, folders, vocabulary) if has_base else views[0]
        models = align_models([base, *views], lambda name: False, findings)
        if models is None:
            return []
        if recipe.out_dtype is None and recipe.dtype is None:
            models.take_widest_dtypes()
        parameters = ParametersOfTensors(recipe)
        of_tensors = {one.name: parameters.of(one) for one in own if one.name in models.forms}
        for name, matrix in models.same_as.items():
            if of_tensors[name] != of_tensors[matrix]:
                findings.warn(
                    f"{recipe.place}: {name}: all models tie it to {matrix}, so it is merged with that one's parameters"
                )
        known = {**roles, **recipe.given_names}  # the first model's role is not its given name
        names = ["+".join(dict.fromkeys(known[one.model] for one in column.values())) for column in inputs]
        parts.append(Part(models, _distinct(names), of_tensors))
    return parts


def _kind(tensor: TensorMerge) -> tuple[int, bool]:
    """How many models are merged in a tensor, and whether there is a θ0 beside them."""
    return len(tensor.inputs), tensor.base is not None


class ParametersOfTensors:
    """The parameters of a recipe's tensors; those of equal tensors are one object."""

    def __init__(self, recipe: Recipe):
        self._recipe = recipe
        self._known: dict[str, MergeParameters] = {}

    def of(self, tensor: TensorMerge) -> MergeParameters:
        key = json.dumps(vars(tensor.steps))
        if key not in self._known:
            self._known[key] = self._make(tensor)
        return self._known[key]

    def _make(self, tensor: TensorMerge) -> MergeParameters:
        recipe, steps = self._recipe, tensor.steps
        mask = None
        if steps.mask is not None:
            weight_format = recipe.mask.weight_format if recipe.mask else "delta_weight"
            mask = mask_of(steps.mask, weight_format=weight_format, **steps.mask_options)
        options = {name: value for name, value in steps.options.items() if name != "weight" or not recipe.mixup}
        parameters = parameters_of(
            steps.method,
            mask=mask,
            mixup=recipe.mixup,
            seed=recipe.seed,
            dtype=recipe.out_dtype or recipe.dtype,
            exclude_param_names_regex=recipe.exclude_param_names_regex,
            **options,
        )
        try:
            parameters.check(len(tensor.inputs))
        except UserError as error:
            option = re.compile(r"--(\w+)")
            place = recipe.place_of(*option.findall(str(error)))
            text = option.sub(r"\1", str(error))
            raise UserError(f"{place}: {text}") from None
        return parameters


def _view(
    recipe: Recipe, tensors: Mapping[str, Input], folders: Folders, vocabulary: BuiltVocabulary | None
) -> SlicedFolder:
    """The tensors of one position of a recipe's sources, as one model."""
    places = {name: Origin(folders[one.model], one.name) for name, one in tensors.items()}
    rebuilt = {}
    for name, place in places.items():
        matrix = vocabulary.matrix(folders, place) if vocabulary and is_vocabulary_matrix(name) else None
        if matrix is not None:
            rebuilt[name] = matrix
    giver = folders[next(iter(tensors.values())).model]
    tokens = vocabulary.tokens if vocabulary else folders[recipe.models[0]].tokens()
    return SlicedFolder(giver.folder, giver.config, places, tokens, rebuilt)


def _distinct(names: Sequence[str]) -> list[str]:
    """Names, with a number appended to repeated ones."""
    return [f"{name}.{names[:i].count(name) + 1}" if name in names[:i] else name for i, name in enumerate(names)]
