"""Strict reading of YAML: plain data, each value with the place where it was written.

Scalars mean what they mean to PyYAML's safe loader (YAML 1.1). Refused are duplicate keys, keys that are not texts,
tags that stand for anything but plain data, and aliases that refer to themselves or expand to too much.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import yaml

from utils.errors import UserError

MOST_BYTES = 1 << 18
MOST_VALUES = 100_000  # with all aliases expanded
MOST_LEVELS = 50
RecipeSource = Path | dict[str, Any]  # of a recipe
_TAG = "tag:yaml.org,2002:"
_SCALARS = {_TAG + name for name in ("str", "int", "float", "bool", "null")}


@dataclass(frozen=True)
class Node:
    """A value: a scalar, a list of nodes or a mapping from texts to nodes.

    name: the key that it has, or the key of the list that it is in. place: "FILE:LINE" of its key or list item, or
    the one that `node_of_values` gives.
    """

    value: Any
    name: str
    place: str

    def error(self, what: str) -> UserError:
        """The error "FILE:LINE: NAME: WHAT"."""
        return UserError(f"{self.place}: {self.name}: {what}" if self.name else f"{self.place}: {what}")

    def mapping(self, *known: str) -> dict[str, Node]:
        """The entries of a mapping whose keys are all among `known`, without those that are null."""
        entries = self.entries()
        for key, node in entries.items():
            if key not in known:
                raise node.error(f"unknown key; {choice(key, known)}")
        return {key: node for key, node in entries.items() if node.value is not None}

    def entries(self) -> dict[str, Node]:
        """The entries of a mapping; none if a null is given for it."""
        if self.value is None:
            return {}
        if not isinstance(self.value, dict):
            raise self.error(f"is {self._shown()}; give a mapping of keys and values")
        return self.value

    def items(self) -> list[Node]:
        """The items of a list that is not empty."""
        if not isinstance(self.value, list) or not self.value:
            raise self.error(f"is {self._shown()}; give a list with at least one item")
        return self.value

    def text(self) -> str:
        if isinstance(self.value, str) and self.value:
            return self.value
        raise self.error(f"is {self._shown()}; give a text, in quotes if it looks like a number")

    def chosen(self, known: Sequence[str]) -> str:
        """A text that is one of `known`."""
        if self.value in known:
            return self.value
        raise self.error(f"{self._shown()} is unknown; {choice(self.value, known)}")

    def typed(self, kind: type) -> float | int | bool | str:
        """A scalar as a float, int, bool or str. Texts such as "1e-3", which are numbers in other YAML versions, count
        as numbers; 0 and 1 count as booleans."""
        value = self.value
        if kind is str and isinstance(value, str):
            return value
        if kind is bool and isinstance(value, bool | int | float) and value in (0, 1):
            return bool(value)
        found = finite_number(value) if kind in (float, int) else None
        if found is not None and (kind is float or found == int(found)):
            return kind(found)
        raise self.error(f"is {self._shown()}; give {_IN_WORDS[kind]}")

    @property
    def plain(self) -> Any:
        """The value without names and places."""
        if isinstance(self.value, dict):
            return {key: node.plain for key, node in self.value.items()}
        return [node.plain for node in self.value] if isinstance(self.value, list) else self.value

    def _shown(self) -> str:
        if isinstance(self.value, dict | list):
            kind = "mapping" if isinstance(self.value, dict) else "list"
            return f"a {kind}" if self.value else f"an empty {kind}"
        return "empty" if self.value is None else f"{self.value!r}"[:80]


_IN_WORDS = {float: "a finite number", int: "a whole number", bool: "true or false", str: "a text"}


def finite_number(value: Any) -> float | None:
    """The number that a scalar stands for; None if it is not a finite one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def nearest(given: Any, known: Iterable[str]) -> str | None:
    """A remedy that names the nearest of `known`; None if none is near."""
    near = difflib.get_close_matches(str(given), list(known), n=1)
    return f"did you mean {near[0]}?" if near else None


def choice(given: Any, known: Iterable[str]) -> str:
    """A remedy that names the nearest of `known`, or all of them."""
    return nearest(given, known) or f"choose one of {', '.join(known)}"


def read_documents(source: RecipeSource) -> list[Node]:
    """The documents of a YAML file, or of plain values. Raises UserError for a file that cannot be read, or breaks a
    rule above."""
    if isinstance(source, dict):
        return [node_of_values(source, "recipe")]
    try:
        content = source.read_bytes()
    except OSError as error:
        raise UserError(f"{source}: {error.strerror}; give a recipe, a YAML file") from None
    if len(content) > MOST_BYTES:
        raise UserError(f"{source}: has {len(content)} bytes; a recipe has at most {MOST_BYTES}")
    return _parse(content, source)


def node_of_values(values: Mapping[str, Any], file: str) -> Node:
    """A document of plain values, with paths as texts, and NumPy's numbers and arrays as Python's. The place of a value
    is the path of the mapping that holds it, or of the list item: "FILE, models[1].parameters"."""
    try:
        return _node_of(values, "", file, file)
    except RecursionError:
        raise UserError(f"{file}: is nested too deeply; give a smaller recipe") from None


def _node_of(value: Any, name: str, place: str, path: str) -> Node:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        entries = {}
        for key, one in value.items():
            if not isinstance(key, str):
                raise UserError(f"{path}: {key!r:.80}: is not a text; give a text as this key")
            entries[key] = _node_of(one, key, path, f"{path}{'.' if name else ', '}{key}")
        return Node(entries, name, place)
    if isinstance(value, list | tuple):
        items = [(one, f"{path}[{number}]") for number, one in enumerate(value)]
        return Node([_node_of(one, name, own, own) for one, own in items], name, place)
    node = Node(str(value) if isinstance(value, PurePath) else value, name, place)
    if node.value is not None and not isinstance(node.value, str | int | float):
        raise node.error(f"is of the type {type(value).__name__}; give texts, numbers, lists and mappings")
    return node


def _parse(content: bytes, file: Path) -> list[Node]:
    """The documents of a text in UTF-8, which errors call `file`."""
    try:
        composed = list(_compose(content.decode("utf-8-sig")))
    except UnicodeDecodeError:
        raise UserError(f"{file}: is not a text in UTF-8; save it in that encoding") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(f"{file}:{mark.line + 1}: {error.problem or error.context}; correct the YAML") from None
    except yaml.reader.ReaderError as error:
        line = content.decode("utf-8-sig")[: error.position].count("\n") + 1
        raise UserError(f"{file}:{line}: holds a character that YAML does not allow; remove it") from None
    except RecursionError:
        raise UserError(f"{file}: is nested too deeply; a recipe has at most {MOST_LEVELS} levels") from None
    reader = _Reader(str(file))
    documents = [reader.read(node, "", node.start_mark.line, 0) for node in composed]
    documents = [document for document in documents if document.value is not None]
    if not documents:
        raise UserError(f"{file}: is empty; give a recipe")
    return documents


def _compose(text: str) -> Iterator[yaml.Node]:
    """The documents as PyYAML's nodes, in which an alias is the node that it refers to."""
    loader = yaml.SafeLoader(text)
    try:
        while loader.check_node():
            yield loader.get_node()
    finally:
        loader.dispose()


class _Reader:
    """Turns PyYAML's nodes of one file into ours, and counts them."""

    def __init__(self, file: str):
        self._file = file
        self._number_of_values = 0
        self._constructor = yaml.constructor.SafeConstructor()

    def read(self, node: yaml.Node, name: str, line: int, level: int) -> Node:
        place = f"{self._file}:{line + 1}"
        self._number_of_values += 1
        if self._number_of_values > MOST_VALUES or level > MOST_LEVELS:
            raise UserError(
                f"{place}: {name}: has more than {MOST_VALUES} values or {MOST_LEVELS} levels with its aliases "
                "expanded; write a smaller recipe"
            )
        if isinstance(node, yaml.ScalarNode):
            return Node(self._scalar(node, name, place), name, place)
        kind = "seq" if isinstance(node, yaml.SequenceNode) else "map"
        if node.tag != _TAG + kind:
            raise self._refused_tag(node, name, place)
        if kind == "seq":
            items = [self.read(item, name, item.start_mark.line, level + 1) for item in node.value]
            return Node(items, name, place)
        return Node(self._mapping(node, level), name, place)

    def _scalar(self, node: yaml.ScalarNode, name: str, place: str) -> Any:
        if node.tag == _TAG + "timestamp":
            return node.value
        if node.tag not in _SCALARS:
            raise self._refused_tag(node, name, place)
        try:
            return self._constructor.construct_object(node)
        except (ValueError, KeyError, yaml.YAMLError):
            raise UserError(f"{place}: {name}: {node.value[:80]!r} is not a {node.tag[len(_TAG) :]}") from None

    def _mapping(self, node: yaml.MappingNode, level: int) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key, value in node.value:
            place = f"{self._file}:{key.start_mark.line + 1}"
            if key.tag == _TAG + "merge":
                merged = {**self._merged(value, level), **merged}
                continue
            if key.tag != _TAG + "str":
                raise UserError(f"{place}: {str(key.value)[:80]}: is not a text; put this key in quotes")
            if key.value in entries:
                raise UserError(f"{place}: {key.value}: is given twice; remove one")
            entries[key.value] = self.read(value, key.value, key.start_mark.line, level + 1)
        return {**merged, **entries}

    def _merged(self, value: yaml.Node, level: int) -> dict[str, Node]:
        """The entries that the key << takes over from a mapping, or from several, the first one first."""
        sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
        entries: dict[str, Node] = {}
        for source in sources:
            read = self.read(source, "<<", source.start_mark.line, level + 1)
            entries = {**(read.value if isinstance(read.value, dict) else read.entries()), **entries}
        return entries

    def _refused_tag(self, node: yaml.Node, name: str, place: str) -> UserError:
        tag = node.tag.replace(_TAG, "!!")
        return UserError(f"{place}: {name}: the tag {tag} is not plain data; remove it")
