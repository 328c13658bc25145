"""A model put together from parts of checkpoint folders: layers of several models, and rows for another vocabulary."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from model_merging_methods.checkpoints.rebuilt_matrix import RebuiltMatrix
from model_merging_methods.checkpoints.vocabulary_matrices import Origin
from utils.safetensors_files import StoredTensor


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
