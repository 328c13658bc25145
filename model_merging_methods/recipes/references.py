"""Models and layers as a recipe names them."""

from __future__ import annotations

from dataclasses import dataclass

from model_merging_methods.recipes.reading import Node


@dataclass(frozen=True)
class ModelReference:
    """A model: a folder, a name of the hub or of another document; its revision; an adapter to apply to it."""

    path: str
    revision: str | None = None
    lora: ModelReference | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.path}{revision}" + (f"+{self.lora}" if self.lora else "")


def read_model(node: Node) -> ModelReference:
    """`path`, `path@revision`, either with `+lora`; or a mapping of model, a text or {path, revision}, and lora."""
    if isinstance(node.value, dict):
        entries = node.mapping("model", "lora", "path", "revision")
        if "path" in entries:
            revision = entries["revision"].text() if "revision" in entries else None
            return ModelReference(entries["path"].text(), revision)
        if "model" not in entries:
            raise node.error("names no model; add path:")
        model = read_model(entries["model"])
        return ModelReference(model.path, model.revision, read_model(entries["lora"]) if "lora" in entries else None)
    parts = node.text().split("+")
    if len(parts) > 2 or not all(parts):
        raise node.error(f"{node.value} must be path or path+lora; if + is part of a path, write {{path: ...}}")
    model, *lora = [_read_path(part, node) for part in parts]
    return ModelReference(model.path, model.revision, lora[0] if lora else None)


def _read_path(text: str, node: Node) -> ModelReference:
    parts = text.split("@")
    if len(parts) > 2 or not all(parts):
        raise node.error(f"{node.value} must be path or path@revision; if @ is part of a path, write {{path: ...}}")
    return ModelReference(*parts)


def read_layers(node: Node) -> tuple[int, int]:
    items = node.items()
    if len(items) != 2:
        raise node.error(f"has {len(items)} numbers; give the first layer and the one after the last, such as [0, 8]")
    first, end = (Node(item.value, node.name, item.place).typed(int) for item in items)
    if not 0 <= first < end:
        raise node.error(f"[{first}, {end}] holds no layer; count from 0, the end not included")
    return first, end
