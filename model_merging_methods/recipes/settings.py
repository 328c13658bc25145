"""Settings of a recipe: numbers that may differ by level, by a tensor's name, and by layer.

A setting is a value, a gradient over the layers, or a list of those with filters on names. It may be given for a
source, a slice, a module and the whole recipe; the first of these that yields a value for a tensor counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model_merging_methods.method import Option
from model_merging_methods.recipes.reading import Node

Scalar = float | int | bool | str


@dataclass(frozen=True)
class Rule:
    """The value for tensors whose names contain `filter` (None: for all): one, or the points of a gradient."""

    filter: str | None
    points: tuple[Scalar, ...]
    is_gradient: bool
    node: Node

    def fits(self, name: str) -> bool:
        return self.filter is None or self.filter in name

    def at(self, x: float) -> Scalar:
        """The value at position x of the layers, from 0 to 1: interpolated between numbers, else the nearest before."""
        place = x * (len(self.points) - 1)
        j = int(place)
        if j + 1 == len(self.points) or not _is_number(self.points[0]):
            return self.points[j]
        f = place - j
        return (1 - f) * self.points[j] + f * self.points[j + 1]


Setting = tuple[Rule, ...]
Settings = Mapping[str, Setting]


def read_settings(node: Node | None, what: str, options: Mapping[str, Option | None]) -> dict[str, Setting]:
    """The settings of one level. `options` are the known ones; None for one that is accepted without effect."""
    if node is None:
        return {}
    given = node.mapping(what, options)
    return {
        name: read_setting(value, f"{what}: {name}", options[name])
        for name, value in given.items()
        if options[name] is not None
    }


def read_setting(node: Node, what: str, option: Option) -> Setting:
    nodes = node.value if isinstance(node.value, list) and _has_filters(node.value) else [node]
    rules = []
    for one in nodes:
        text, value = None, one
        if isinstance(one.value, dict):
            given = one.mapping(what, ("filter", "value"))
            if "value" not in given:
                raise one.error(f"{what}: a filter without a value; add one")
            value = given["value"]
            text = str(given["filter"].value) if "filter" in given else None
        is_gradient = isinstance(value.value, list)
        points = value.list(what) if is_gradient else [value]
        if is_gradient and option.type not in (float, bool):
            raise value.error(f"{what}: takes one value, not a gradient; write {option.range}")
        read = tuple(_scalar(point, what, option) for point in points)
        rules.append(Rule(None if text in (None, "*") else text, read, is_gradient, value))
    return tuple(rules)


def find_rule(levels: Sequence[Settings], option: str, name: str | None) -> Rule | None:
    """The rule for a tensor of this name (None: for any): of the first level that has one."""
    for settings in levels:
        for rule in settings.get(option, ()):
            if name is None or rule.fits(name):
                return rule
    return None


def _has_filters(nodes: Sequence[Node]) -> bool:
    return any(isinstance(node.value, dict) for node in nodes)


def _scalar(node: Node, what: str, option: Option) -> Scalar:
    value = node.value
    if option.type is bool:
        if not isinstance(value, bool):
            raise node.error(f"{what}: write true or false, not {node.kind}")
        return value
    if option.type is str:
        return node.text(what)
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as a text
        try:
            value = float(value)
        except ValueError:
            raise node.error(f"{what}: write {option.range}, not {node.kind}") from None
    is_whole = option.type is not int or (_is_number(value) and value == int(value))
    if not _is_number(value) or not is_whole or not option.about.low <= value <= option.about.high:
        raise node.error(f"{what}: write {option.range}, not {node.kind}")
    return option.type(value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
