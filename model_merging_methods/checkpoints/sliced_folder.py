"""A model put together from parts of checkpoint folders: layers of several models, and rows for another vocabulary."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model_merging_methods.checkpoints.rebuilt_matrix import RebuiltMatrix
from model_merging_methods.checkpoints.tensor_names import without_wrappers
from model_merging_methods.checkpoints.vocabulary_matrices import INPUT_EMBEDDINGS, Folder, Origin
from utils.safetensors_files import StoredTensor

# The layers of a language model, by the families' names; a vision tower's layers are none of these.
_LAYER = re.compile(
    r"((?:model\.language_model\.|language_model\.model\.|model\.|transformer\.|gpt_neox\.|backbone\.)?"
    r"(?:layers|h|blocks|block)\.)(\d+)(\..+)"
)
_NUMBERS_OF_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


class SlicedFolder:
    """Tensors of opened folders, under the names of the model that is made of them.

    `folder` and `config` are those of the model that gives the config. `rebuilt` are vocabulary matrices with other
    rows than any stored one. `tokens` are the tokens of all rows.
    """

    is_adapter = False

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        places: Mapping[str, Origin],
        tokens: Mapping[str, int] | None,
        rebuilt: Mapping[str, RebuiltMatrix],
    ):
        self.folder = folder
        self.config = config
        self._tokens = tokens
        self.places = places
        self._rebuilt = rebuilt
        self.tensors: dict[str, StoredTensor] = {}
        for name, place in places.items():
            stored = place.folder.tensors[place.name]
            matrix = rebuilt.get(name)
            self.tensors[name] = StoredTensor(stored.file, "F32", matrix.shape) if matrix else stored

    def read_into(self, buffer: np.ndarray, name: str, start: int, stop: int) -> None:
        """Put values start … stop − 1 of the flattened tensor `name` into `buffer` (uint8), as `tensors` says."""
        if name in self._rebuilt:
            buffer.view(np.float32)[:] = self._rebuilt[name].read(start, stop)
        else:
            place = self.places[name]
            place.folder.read_into(buffer, place.name, start, stop)

    def read_ahead(self, name: str, start: int, stop: int) -> None:
        """Have the system start reading these values from the disk."""
        if name not in self._rebuilt:
            place = self.places[name]
            place.folder.read_ahead(place.name, start, stop)

    def tokens(self) -> Mapping[str, int] | None:
        """The tokens of the vocabulary's rows; None without a tokenizer."""
        return self._tokens

    def origin(self, name: str) -> Origin | None:
        """Where a tensor's values are stored; None if they are computed."""
        if name in self._rebuilt:
            return None
        place = self.places[name]
        return place.folder.origin(place.name)


@dataclass(frozen=True)
class LayerSlice:
    """Layers `start` … `stop` − 1 of an opened model."""

    model: Folder
    start: int
    stop: int


def slice_places(slices: Mapping[int, LayerSlice], number: int) -> dict[str, Origin]:
    """The tensors of slices, by the merged model's names. `slices` maps the first merged layer of each to its layers;
    the merged model has `number` layers. What comes before the layers goes with the first slice, what follows with the
    last."""
    places = {}
    for first, layers in slices.items():
        shift = first - layers.start
        for own in layers.model.tensors:
            name = without_wrappers(own)
            layer = layer_of(name)
            if layer is None:
                is_here = first == 0 if is_before_layers(name) else first + layers.stop - layers.start == number
            else:
                is_here = layers.start <= layer < layers.stop
            if is_here:
                places[name if layer is None else with_layer(name, layer + shift)] = Origin(layers.model, own)
    return places


def count_layers(model: Folder) -> int:
    """How many layers the tensors of a model have."""
    layers = (layer_of(without_wrappers(name)) for name in model.tensors)
    return max((layer for layer in layers if layer is not None), default=-1) + 1


def layer_of(name: str) -> int | None:
    """The number of the language model's layer that a tensor belongs to; None for embeddings, heads and the like."""
    found = _LAYER.fullmatch(name)
    return int(found[2]) if found else None


def with_layer(name: str, layer: int) -> str:
    """The name of the same tensor of another layer."""
    return _LAYER.sub(rf"\g<1>{layer}\g<3>", name)


def is_before_layers(name: str) -> bool:
    """Whether a tensor outside the layers goes with the first slice: embeddings, also those of positions."""
    return name.endswith(INPUT_EMBEDDINGS) or bool(re.search(r"(?:^|\.)(?:wpe|wte|embed\w*|\w*embeddings?)\.", name))


def number_of_layers(config: Mapping[str, Any]) -> int | None:
    """The number of layers in a config; None if it has no such setting."""
    place = _language_model(config)
    return next((place[key] for key in _NUMBERS_OF_LAYERS if isinstance(place.get(key), int)), None)


def set_layers(config: dict[str, Any], layers: list[int]) -> None:
    """Change a config to a model of these of its layers: their number, and every list with an entry for each layer."""
    place, before = _language_model(config), number_of_layers(config)
    for key, value in place.items():
        if key in _NUMBERS_OF_LAYERS:
            place[key] = len(layers)
        elif isinstance(value, list) and len(value) == before:
            place[key] = [value[layer] for layer in layers]


def _language_model(config: Mapping[str, Any]) -> Any:
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config
