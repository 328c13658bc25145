"""Read YAML strictly: plain values only, each with the line where it is written, so that errors can name it.

Values are those of YAML 1.1 as PyYAML reads them. Tags that build objects, keys given twice and anchors that grow
without bounds are refused.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UserError

_LARGEST = 10_000_000  # bytes of a file
_MOST_NODES = 100_000  # after anchors are repeated
_DEEPEST = 50
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")}
_MERGE, _TEXT = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:str"


@dataclass(frozen=True)
class Node:
    """A value of a YAML file: a scalar, a list of nodes, or a mapping of names to nodes; and where it is."""

    value: Any
    file: Path
    line: int

    def error(self, text: str) -> UserError:
        return UserError(f"{self.file}:{self.line}: {text}")

    def mapping(self, what: str, known: Collection[str]) -> Mapping[str, "Node"]:
        """The value as a mapping with these keys and no others."""
        if not isinstance(self.value, dict):
            raise self.error(f"{what}: write a mapping of names to values, not {self.kind}")
        for key, node in self.value.items():
            if key not in known:
                raise node.error(f"{what}: unknown key {key}; {near_names(key, known)}")
        return self.value

    def list(self, what: str) -> list["Node"]:
        """The value as a list with an element or more."""
        if not isinstance(self.value, list) or not self.value:
            raise self.error(f"{what}: write a list of one or more, not {self.kind}")
        return self.value

    def text(self, what: str) -> str:
        if not isinstance(self.value, str) or not self.value:
            raise self.error(f"{what}: write a text, not {self.kind}")
        return self.value

    def whole_number(self, what: str) -> int:
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise self.error(f"{what}: write a whole number, not {self.kind}")
        return self.value

    @property
    def kind(self) -> str:
        if isinstance(self.value, dict):
            return "a mapping"
        if isinstance(self.value, list):
            return "a list" if self.value else "an empty list"
        return "nothing" if self.value is None else repr(self.value)

    @property
    def plain(self) -> Any:
        """The value without lines."""
        if isinstance(self.value, dict):
            return {key: node.plain for key, node in self.value.items()}
        return [node.plain for node in self.value] if isinstance(self.value, list) else self.value


def near_names(name: str, known: Collection[str]) -> str:
    """What a message says after an unknown name."""
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"


def read_documents(file: Path) -> list[Node]:
    """The documents of a YAML file. Raises UserError, naming file and line, for anything but plain values."""
    try:
        if file.stat().st_size > _LARGEST:
            raise UserError(f"{file}: is larger than {_LARGEST // 1_000_000} MB, which no recipe is; give a recipe")
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not a text"
        raise UserError(f"{file}: {reason}; give a recipe in YAML") from None
    return parse_documents(text, file)


def parse_documents(text: str, file: Path) -> list[Node]:
    try:
        roots = [root for root in yaml.compose_all(text, Loader=yaml.SafeLoader) if root is not None]
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{file}{line}: {getattr(error, 'problem', None) or 'cannot be read'}; write YAML") from None
    documents = [_Converter(file).node(root) for root in roots]
    if not documents:
        raise UserError(f"{file}: is empty; give a recipe in YAML")
    return documents


class _Converter:
    def __init__(self, file: Path):
        self._file = file
        self._nodes = 0
        self._scalars = yaml.SafeLoader("")

    def node(self, source: yaml.Node, depth: int = 0) -> Node:
        made = Node(None, self._file, source.start_mark.line + 1)
        self._nodes += 1
        if self._nodes > _MOST_NODES or depth > _DEEPEST:
            raise made.error("too many values, or anchors that contain themselves; write the values out")
        if source.tag not in _TAGS and not (isinstance(source, yaml.ScalarNode) and source.tag.endswith(":timestamp")):
            raise made.error(f"the tag {source.tag} is refused; write plain values")
        if isinstance(source, yaml.MappingNode):
            return Node(self._mapping(source, depth), self._file, made.line)
        if isinstance(source, yaml.SequenceNode):
            return Node([self.node(child, depth + 1) for child in source.value], self._file, made.line)
        is_plain = source.tag in _TAGS and source.tag != _TEXT
        try:
            value = self._scalars.construct_object(source) if is_plain else source.value
        except (ValueError, yaml.YAMLError):
            raise made.error(f"{source.value!r} cannot be read; write a number or a text") from None
        return Node(value, self._file, made.line)

    def _mapping(self, source: yaml.MappingNode, depth: int) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key, value in source.value:
            place = Node(None, self._file, key.start_mark.line + 1)
            if key.tag == _MERGE:
                parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for part in reversed(parts):
                    content = self.node(part, depth + 1).value
                    if not isinstance(content, dict):
                        raise place.error("<<: write an anchor of a mapping")
                    merged |= content
                continue
            if not isinstance(key, yaml.ScalarNode):
                raise place.error("a key that is not a text; write a name")
            if key.value in own:
                raise place.error(f"the key {key.value} is given twice; remove one")
            converted = self.node(value, depth + 1)
            is_block = isinstance(value, yaml.CollectionNode)
            own[key.value] = Node(converted.value, self._file, place.line if is_block else converted.line)
        return {**merged, **own}
