"""Settings: a parameter's values at one level of a recipe, for any tensor and layer.

A setting is a scalar, a gradient over the layers, or a list of filters on tensor names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model_merging_methods.recipes.mergekit_methods import Parameter
from model_merging_methods.recipes.reading import Node, choice

Scalar = float | int | bool | str
NO_EFFECT = ("int8_mask",)  # changes how mergekit stores masks, but no value


@dataclass(frozen=True)
class Branch:
    """Values for the tensors whose names contain `filter` (None: all). Several values are a gradient."""

    filter: str | None
    values: tuple[Scalar, ...]

    def applies_to(self, tensor_name: str) -> bool:
        return self.filter is None or self.filter in tensor_name


@dataclass(frozen=True)
class Setting:
    """A parameter as a recipe gives it. place: "FILE:LINE"."""

    name: str
    branches: tuple[Branch, ...]
    place: str

    def at(self, tensor_name: str, x: float) -> Scalar | None:
        """The value for a tensor at position x ∈ [0, 1]; None if no filter applies to it."""
        for branch in self.branches:
            if branch.applies_to(tensor_name):
                return interpolated(branch.values, x)
        return None

    @property
    def is_constant(self) -> bool:
        """Whether all tensors get one value."""
        return self.branches[0].filter is None and len(self.branches[0].values) == 1


Settings = Mapping[str, Setting]


def interpolated(values: Sequence[Scalar], x: float) -> Scalar:
    """The value at x ∈ [0, 1] of a gradient, linear between its numbers; booleans and texts are not interpolated."""
    position = x * (len(values) - 1)
    left = int(position)
    fraction = position - left
    if fraction == 0 or not isinstance(values[left], float):
        return values[left]
    # Not v[j] + f (v[j+1] − v[j]): that differs by a rounding, which can move int(density · n).
    return (1 - fraction) * values[left] + fraction * values[left + 1]


def first_value(levels: Sequence[Setting | None], tensor_name: str, x: float) -> tuple[Scalar, Setting] | None:
    """The value for a tensor from the first level that has one, and that level's setting."""
    for setting in levels:
        value = None if setting is None else setting.at(tensor_name, x)
        if value is not None:
            return value, setting
    return None


def read_setting(node: Node, kind: type) -> Setting:
    """The setting in a node, whose values are float, int, bool or str."""
    is_filters = isinstance(node.value, dict) or (
        isinstance(node.value, list) and any(isinstance(item.value, dict) for item in node.value)
    )
    if not is_filters:
        return Setting(node.name, (Branch(None, _values(node, kind)),), node.place)
    items = node.items() if isinstance(node.value, list) else [node]
    return Setting(node.name, tuple(_branch(item, kind) for item in items), node.place)


def _branch(node: Node, kind: type) -> Branch:
    entries = node.mapping("filter", "value")
    if "value" not in entries:
        raise node.error("a filter has no value; add value: …")
    given = entries["filter"].text() if "filter" in entries else None
    value = entries["value"]
    return Branch(None if given == "*" else given, _values(Node(value.value, node.name, value.place), kind))


def _values(node: Node, kind: type) -> tuple[Scalar, ...]:
    if not isinstance(node.value, list):
        return (node.typed(kind),)
    if kind in (int, str):
        raise node.error(f"takes one {'whole number' if kind is int else 'text'}, not a gradient; give one value")
    return tuple(item.typed(kind) for item in node.items())


class SettingReader:
    """Reads the parameters of any level of one recipe."""

    def __init__(self, owner: str, known: Mapping[str, Parameter], has_ratios: bool):
        """owner: the method and mask in words. has_ratios: whether M3's ratios replace `weight`."""
        self._owner = owner
        self._known = known
        self._has_ratios = has_ratios

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
