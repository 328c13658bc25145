"""The `merge_method` of a recipe in our terms: a method, perhaps a mask before it, and the names of their options.

mergekit's names come first: where a name means two algorithms, a recipe means mergekit's (`ties` trims each tensor).
Our own methods may be named as well, with their own options.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from model_merging_methods.masks import MASKS
from model_merging_methods.method import About, Option, Value
from model_merging_methods.methods import METHODS


class Target(NamedTuple):
    """The option of ours that a parameter sets, and how its value is converted (None: it is the same)."""

    option: str
    convert: Callable[[Value], Value] | None = None


@dataclass(frozen=True)
class RecipeMethod:
    """A `merge_method`.

    base: "none" (an input like the others), "first" (the first of the inputs), "required" or "optional" (θ0).
    parameters: the options of ours by their names in recipes. required: those without a default there. defaults: of
    options whose default differs from ours. ignored: accepted, without effect on any value.
    """

    method: str
    mask: str | None = None
    base: str = "required"
    parameters: Mapping[str, Target] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    defaults: Mapping[str, Value] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    def options(self) -> dict[str, Option | None]:
        """The parameters that a recipe may give, as options; None for those without effect."""
        known: dict[str, Option | None] = dict.fromkeys(self.ignored)
        for name, target in self.parameters.items():
            known[name] = _READ_AS.get(name) or self.option(target.option)
        return known

    def option(self, name: str) -> Option:
        """The option of ours: the mask's, else the method's."""
        own = MASKS[self.mask].options if self.mask else {}
        return own[name] if name in own else METHODS[self.method].options[name]


def recipe_method(name: str, rescales: bool) -> RecipeMethod | None:
    """The method of a recipe; None for an unknown name. `rescales`: whether it asks for `rescale` somewhere."""
    if name == "ties" and rescales:
        return _TRIMMED_AND_RESCALED
    if name in _MERGEKIT:
        return _MERGEKIT[name]
    if name not in METHODS:
        return None
    method = METHODS[name]
    base = "required" if method.reads_base is True else "none" if method.reads_base is False else "optional"
    return RecipeMethod(name, base=base, parameters=_same(*method.options))


def method_names() -> list[str]:
    """All names that a recipe may give."""
    return [*_MERGEKIT, *(name for name in METHODS if name not in _MERGEKIT)]


def mask_targets(mask: str) -> dict[str, Target]:
    return _same(*MASKS[mask].options)


def _same(*names: str) -> dict[str, Target]:
    return {name: Target(name) for name in names}


def _drop_rate(density: Value) -> Value:
    return 1 - min(max(float(density), 0.0), 1.0)


def _l1_or_none(rescale: Value) -> Value:
    return "l1" if rescale else "none"


# Parameters whose values are written otherwise than the options that they set.
_READ_AS = {
    "density": Option("density", float, 1.0, About("share of the values that are kept", 0, 1), True),
    "rescale": Option("rescale", bool, False, About("restore the L1 norm of what is kept"), False),
}
_WEIGHTED = {**_same("weight", "normalize"), "lambda": Target("scaling_coefficient")}
_UNUSED = ("int8_mask",)


def _sparsified(mask: str, parameters: Mapping[str, Target], consensus: bool, **defaults: Value) -> RecipeMethod:
    """A mask before the weighted sum of task vectors, or before mergekit's TIES without its own trimming."""
    method = "ties_per_tensor" if consensus else "task_arithmetic"
    return RecipeMethod(
        method, mask, parameters={**_WEIGHTED, **parameters}, required=("weight",), defaults=defaults, ignored=_UNUSED
    )


_DARE = {"density": Target("weight_mask_rate", _drop_rate), "rescale": Target("use_l1_rescale")}
_BAND = {**_same("density", "gamma"), "rescale": Target("rescale", _l1_or_none)}
_DELLA = {**_same("density", "epsilon"), "rescale": Target("rescale", _l1_or_none)}

_MERGEKIT = {
    "linear": RecipeMethod("linear", base="none", parameters=_same("weight", "normalize"), required=("weight",)),
    "slerp": RecipeMethod("slerp", base="first", parameters=_same("t"), required=("t",)),
    "nuslerp": RecipeMethod(
        "nuslerp",
        base="optional",
        parameters=_same("weight", "nuslerp_row_wise", "nuslerp_flatten"),
        required=("weight",),
    ),
    "multislerp": RecipeMethod(
        "multislerp", base="optional", parameters=_same("weight", "normalize_weights", "eps"), required=("weight",)
    ),
    "karcher": RecipeMethod("karcher", base="none", parameters=_same("max_iter", "tol")),
    "task_arithmetic": RecipeMethod(
        "task_arithmetic", parameters=_WEIGHTED, required=("weight",), ignored=(*_UNUSED, "rescale", "density")
    ),
    "ties": RecipeMethod(
        "ties_per_tensor",
        parameters={**_WEIGHTED, **_same("density")},
        required=("weight",),
        defaults={"normalize": True},
        ignored=(*_UNUSED, "rescale"),
    ),
    "dare_linear": _sparsified("dare", _DARE, consensus=False, normalize=False, use_l1_rescale=True),
    "dare_ties": _sparsified("dare", _DARE, consensus=True, normalize=False, use_l1_rescale=True),
    "breadcrumbs": _sparsified("breadcrumbs", _BAND, consensus=False, normalize=False, rescale="none"),
    "breadcrumbs_ties": _sparsified("breadcrumbs", _BAND, consensus=True, normalize=False, rescale="none"),
    "della_linear": _sparsified("della", _DELLA, consensus=False, normalize=False, rescale="l1"),
    "della": _sparsified("della", _DELLA, consensus=True, normalize=True, rescale="l1"),
    "sce": RecipeMethod("sce", parameters=_same("select_topk"), ignored=_UNUSED),
    "model_stock": RecipeMethod("model_stock", parameters=_same("filter_wise")),
    "nearswap": RecipeMethod("nearswap", parameters=_same("t"), required=("t",)),
    "arcee_fusion": RecipeMethod("arcee_fusion"),
    "ram": RecipeMethod("ram", parameters=_same("epsilon")),
    "ramplus_tl": RecipeMethod("ramplus_tl", parameters={**_same("r", "epsilon"), "alpha": Target("ram_alpha")}),
    "passthrough": RecipeMethod(
        "linear", base="none", parameters={"scale": Target("weight")}, defaults={"normalize": False}
    ),
}
# Trimming keeps the largest magnitudes, which is the band of Breadcrumbs without a cut at the top.
_TRIMMED_AND_RESCALED = _sparsified(
    "breadcrumbs",
    {"density": Target("density"), "rescale": Target("rescale", _l1_or_none)},
    consensus=True,
    normalize=True,
    rescale="none",
    gamma=0.0,
)
