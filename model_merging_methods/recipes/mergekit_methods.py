"""mergekit's merge methods: their parameters, and the mask and method here that compute the same.

The names and defaults are those of mergekit 0.1.5. A name that means another algorithm here has mergekit's meaning:
`ties` is per tensor. Methods of this toolkit that mergekit does not have go by their own names and options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from model_merging_methods.masks import MASKS
from model_merging_methods.method import Method, Option, PerModel, Value
from model_merging_methods.methods import METHODS

Values = Mapping[str, Any]  # of a parameter: one value, or a tuple of one per model


class Base(Enum):
    """How a method uses the base model."""

    REQUIRED = "apart from the models that are merged, required"
    OPTIONAL = "apart from the models that are merged"
    FIRST = "the first of the models that are merged, required"
    INPUT = "one of the models that are merged"


@dataclass(frozen=True)
class Parameter:
    """A parameter of a recipe. default: None for a required one. is_constant: whether all tensors must get one value.
    has_effect: whether the result depends on it."""

    name: str
    type: type
    default: Value | None = None
    is_per_model: bool = False
    is_constant: bool = False
    has_effect: bool = True
    low: float = float("-inf")
    high: float = float("inf")
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Steps:
    """How one tensor is merged: a mask for each model, if any, then a method, with their options by our names.

    An option that has one value per model is a tuple. Options that are left out have their defaults.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    mask: str | None = None
    mask_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RecipeMethod:
    """A value of `merge_method`.

    models: the least and the largest number of models besides the base (with Base.INPUT: of all models).
    steps: from the values of all parameters to our mask and method. It raises BadValue for values outside their range.
    ours, own_mask: the names of the method and the mask that `steps` returns.
    base_option: the option of ours that says whether there is a base.
    """

    name: str
    parameters: Mapping[str, Parameter]
    base: Base
    models: tuple[int, int | None]
    steps: Callable[[Values], Steps]
    ours: str
    own_mask: str | None = None
    base_option: str | None = None

    @property
    def takes_ratios(self) -> bool:
        """Whether M3's ratios apply."""
        return self.ours in METHODS and METHODS[self.ours].takes_ratios

    @property
    def takes_mask(self) -> bool:
        return self.own_mask is None and self.ours in METHODS and METHODS[self.ours].takes_mask


class BadValue(ValueError):
    """A parameter's value for the model of this index is outside its range. Its text says what is wrong."""

    def __init__(self, parameter: str, model: int, what: str):
        super().__init__(what)
        self.parameter = parameter
        self.model = model


def _shared(name: str, kind: type, default: Value | None = None) -> Parameter:
    return Parameter(name, kind, default)


def _constant(name: str, default: bool) -> Parameter:
    """A switch that decides which values a formula sees together, for all tensors."""
    return Parameter(name, bool, default, is_constant=True)


def _by_model(name: str, default: float | None = None) -> Parameter:
    return Parameter(name, float, default, is_per_model=True)


def _task_vector_parameters(*more: Parameter, normalize: bool, rescale: bool) -> tuple[Parameter, ...]:
    return (
        _by_model("weight"),
        _by_model("density", 1.0),
        _shared("lambda", float, 1.0),
        _shared("normalize", bool, normalize),
        _shared("rescale", bool, rescale),
        *more,
    )


def _merged(values: Values, is_elected: bool) -> tuple[str, dict[str, Any]]:
    """The method that adds up task vectors, with or without the election of signs, and its options."""
    options = {
        "weight": values["weight"],
        "scaling_coefficient": values["lambda"],
        "normalize": values["normalize"],
    }
    if not is_elected:
        return "task_arithmetic", options
    return "ties_per_tensor", {**options, "density": (1.0,) * len(values["weight"])}


def _clamped(shares: PerModel) -> PerModel:
    """Shares as mergekit reads them: from 1 on everything, up to 0 nothing."""
    return tuple(min(max(share, 0.0), 1.0) for share in shares)


def _task_arithmetic(values: Values) -> Steps:
    return Steps(*_merged(values, False))  # mergekit drops nothing, so that there is nothing to rescale


def _ties(values: Values) -> Steps:
    method, options = _merged(values, True)
    density = _clamped(values["density"])
    if not values["rescale"]:
        return Steps(method, {**options, "density": density})
    # With gamma 0, breadcrumbs keeps the largest values.
    return Steps(method, options, "breadcrumbs", {"density": density, "gamma": 0.0, "rescale": "l1"})


def _dare(is_elected: bool) -> Callable[[Values], Steps]:
    def steps(values: Values) -> Steps:
        rates = tuple(1 - density for density in _clamped(values["density"]))
        mask_options = {"weight_mask_rate": rates, "use_weight_rescale": False, "use_l1_rescale": values["rescale"]}
        return Steps(*_merged(values, is_elected), "dare", mask_options)

    return steps


def _breadcrumbs(is_elected: bool) -> Callable[[Values], Steps]:
    def steps(values: Values) -> Steps:
        mask_options = {
            "density": _clamped(values["density"]),
            "gamma": _clamped(values["gamma"]),
            "rescale": _l1(values["rescale"]),
        }
        return Steps(*_merged(values, is_elected), "breadcrumbs", mask_options)

    return steps


def _della(is_elected: bool) -> Callable[[Values], Steps]:
    def steps(values: Values) -> Steps:
        for model, (density, epsilon) in enumerate(zip(values["density"], values["epsilon"], strict=True)):
            if epsilon < 0:
                raise BadValue("epsilon", model, f"is {epsilon:g}; give a number from 0 on")
            if 0 < density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
                raise BadValue(
                    "epsilon",
                    model,
                    f"density {density:g} ± epsilon {epsilon:g} must be inside 0 and 1; give a smaller epsilon",
                )
        mask_options = {
            "density": _clamped(values["density"]),
            "epsilon": values["epsilon"],
            "rescale": _l1(values["rescale"]),
        }
        return Steps(*_merged(values, is_elected), "della", mask_options)

    return steps


def _l1(rescale: bool) -> str:
    return "l1" if rescale else "none"


def _same(ours: str, **renamed: str) -> Callable[[Values], Steps]:
    """Our method of this name, with the same options. `renamed` maps mergekit's names of options to ours."""

    def steps(values: Values) -> Steps:
        return Steps(ours, {renamed.get(name, name): value for name, value in values.items()})

    return steps


def _method(
    name: str,
    steps: Callable[[Values], Steps],
    *parameters: Parameter,
    base: Base = Base.REQUIRED,
    models: tuple[int, int | None] = (1, None),
    ours: str | None = None,
    mask: str | None = None,
    base_option: str | None = None,
) -> RecipeMethod:
    by_name = {one.name: one for one in parameters}
    return RecipeMethod(name, by_name, base, models, steps, ours or name, mask, base_option)


def _mergekit_methods() -> Iterable[RecipeMethod]:
    plain = _task_vector_parameters(normalize=False, rescale=False)
    elected = _task_vector_parameters(normalize=True, rescale=False)
    dare = _task_vector_parameters(normalize=False, rescale=True)
    crumbs = (*plain, _by_model("gamma", 0.01))
    della = _task_vector_parameters(_by_model("epsilon", 0.15), normalize=True, rescale=True)
    della_linear = _task_vector_parameters(_by_model("epsilon", 0.15), normalize=False, rescale=True)
    epsilon = _shared("epsilon", float, 1e-5)
    ties, sums = "ties_per_tensor", "task_arithmetic"
    yield _method("linear", _same("linear"), _by_model("weight"), _shared("normalize", bool, True), base=Base.INPUT)
    yield _method("slerp", _same("slerp"), _shared("t", float), base=Base.FIRST, models=(1, 1))
    yield _method(
        "nuslerp",
        _same("nuslerp"),
        _by_model("weight"),
        _constant("nuslerp_row_wise", False),
        _constant("nuslerp_flatten", True),
        base=Base.OPTIONAL,
        models=(2, 2),
        base_option="task_vectors",
    )
    yield _method(
        "multislerp",
        _same("multislerp"),
        _by_model("weight"),
        _shared("normalize_weights", bool, True),
        _shared("eps", float, 1e-8),
        base=Base.OPTIONAL,
        base_option="task_vectors",
    )
    yield _method(
        "karcher", _same("karcher"), _shared("max_iter", int, 10), _shared("tol", float, 1e-5), base=Base.INPUT
    )
    yield _method(
        "task_arithmetic",
        _task_arithmetic,
        *(replace(one, has_effect=one.name not in ("density", "rescale")) for one in plain),
    )
    yield _method("ties", _ties, *elected, ours=ties)
    yield _method("dare_linear", _dare(False), *dare, ours=sums, mask="dare")
    yield _method("dare_ties", _dare(True), *dare, ours=ties, mask="dare")
    yield _method("breadcrumbs", _breadcrumbs(False), *crumbs, ours=sums, mask="breadcrumbs")
    yield _method("breadcrumbs_ties", _breadcrumbs(True), *crumbs, ours=ties, mask="breadcrumbs")
    yield _method("della", _della(True), *della, ours=ties, mask="della")
    yield _method("della_linear", _della(False), *della_linear, ours=sums, mask="della")
    yield _method("sce", _same("sce"), _shared("select_topk", float, 1.0))
    yield _method("model_stock", _same("model_stock"), _constant("filter_wise", False), models=(2, None))
    yield _method("nearswap", _same("nearswap"), _shared("t", float), models=(1, 1))
    yield _method("arcee_fusion", _same("arcee_fusion"), models=(1, 1))
    yield _method("ram", _same("ram"), epsilon)
    yield _method(
        "ramplus_tl",
        _same("ramplus_tl", alpha="ram_alpha"),
        _shared("r", float, 0.1),
        replace(_shared("alpha", float, 0.2), low=0),
        epsilon,
    )
    yield _method("passthrough", _passthrough, _by_model("scale", 1.0), base=Base.INPUT, models=(1, 1), ours="linear")


def _passthrough(values: Values) -> Steps:
    return Steps("linear", {"weight": values["scale"], "normalize": False})


def _own_method(declared: Method) -> RecipeMethod:
    """A method of this toolkit. One with statistics of whole models has the same options for all tensors."""
    parameters = [parameter_of(option, declared.sees_model) for option in declared.options.values()]
    base = Base.OPTIONAL if declared.reads_base is False else Base.REQUIRED
    return _method(declared.name, _same(declared.name), *parameters, base=base, models=declared.models)


def parameter_of(option: Option, is_constant: bool = False) -> Parameter:
    """An option of a method or mask as a parameter of a recipe."""
    about = option.about
    return Parameter(
        option.name,
        option.type,
        option.default,
        is_per_model=option.is_per_model,
        is_constant=is_constant,
        low=about.low,
        high=about.high,
        choices=about.choices,
    )


def _all_methods() -> dict[str, RecipeMethod]:
    mergekits = {method.name: method for method in _mergekit_methods()}
    return {**mergekits, **{name: _own_method(METHODS[name]) for name in METHODS if name not in mergekits}}


RECIPE_METHODS = _all_methods()
MASK_PARAMETERS = {
    name: {option.name: parameter_of(option) for option in mask.options.values()} for name, mask in MASKS.items()
}
