"""Settings: a parameter's values at one level of a recipe, for any tensor and layer.

A setting is a scalar, a gradient over the layers, or a list of filters on tensor names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model_merging_methods.recipes.reading import Node

Scalar = float | int | bool | str


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
