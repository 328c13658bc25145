"""The model that an earlier document of a recipe makes, without its weights: values are merged when they are read."""

from collections import ChainMap
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from model_merging_methods.checkpoints.model_files import output_forms
from model_merging_methods.checkpoints.tokenizer_reading import read_tokens
from model_merging_methods.checkpoints.vocabulary_matrices import is_vocabulary_matrix
from model_merging_methods.engine import Merge
from model_merging_methods.kernels.arithmetic import sees_blocks
from model_merging_methods.kernels.block_passes import Block
from model_merging_methods.merge_request import RECIPE, MergeRequest
from model_merging_methods.opened_models import OpenedModels
from model_merging_methods.statistics import Statistics
from utils.json_files import read_json_object
from utils.safetensors_files import ITEM_SIZES, StoredTensor


def must_be_written(made: MergeRequest, later: MergeRequest) -> bool:
    """Whether a later document cannot read a model while it is being made: one whose merge sees whole tensors, or that
    would be merged again in each of the passes that the later merge's statistics take."""
    mask, method = later.parameters.mask, later.parameters.declared
    has_passes = bool(method.statistics) or (mask is not None and mask.declared.keeps is not None)
    return has_passes or not sees_blocks(made.parameters)


class MadeModel:
    """A model with the values that its merge gives, and files in `place` that are written when they are needed. A value
    that is read twice is merged twice.

    If the merge sees whole tensors or a model's values are not known, neither are these: instead, different vocabulary
    matrices read as different constants, so that checks before the merge see which are equal."""

    is_adapter = False

    def __init__(self, request: MergeRequest, opened: OpenedModels, place: Path):
        self._opened = opened
        self._place = place
        self._merges = [part.merge(request.parameters) for part in opened.parts]
        self._forms = dict(ChainMap(*(output_forms(part.models, request.parameters) for part in opened.parts)))
        self._lock = Lock()
        is_whole = any(merge.needs_whole_tensors for merge in self._merges)
        self.has_values = opened.have_values and not is_whole
        name = Path(request.recipe.recipe.name)
        self.tensors = {one: StoredTensor(name, form.dtype, form.shape) for one, form in self._forms.items()}

    @cached_property
    def folder(self) -> Path:
        """A folder with all files but the weights."""
        self._place.mkdir()
        self._opened.write_files(RECIPE, self._place)
        return self._place

    @cached_property
    def config(self) -> Mapping[str, Any]:
        return read_json_object(self.folder / "config.json", "")

    def tokens(self) -> dict[str, int] | None:
        """The tokens of the vocabulary's rows; None without a tokenizer."""
        return read_tokens(self.folder)

    def files_of(self, exists: Callable[[Path], object]) -> Path:
        """The folder of a kind of file (`AdaptedFolder.files_of`)."""
        return self.folder

    def origin(self, name: str) -> None:
        """No stored tensor has these values."""

    def read_into(self, buffer: np.ndarray, name: str, start: int, stop: int) -> None:
        """Put values start … stop − 1 of the flattened tensor `name` into `buffer` (uint8), as they would be saved."""
        merge, size = self._merge_of(name), ITEM_SIZES[self._forms[name].dtype]
        if not self.has_values:
            buffer[:] = 1 + self._matrices.index(merge.models.matrix(name)) if is_vocabulary_matrix(name) else 0
            return
        with self._lock:
            read = self._readers[name]
        step = merge.blocks.block_size
        for first in range(start, stop, step):
            last = min(first + step, stop)
            read(Block(name, first, last), buffer[(first - start) * size : (last - start) * size])

    def read_ahead(self, name: str, start: int, stop: int) -> None:
        """Have the system start reading the values of the models that are merged."""
        if self.has_values:
            self._merge_of(name).blocks.read_ahead(Block(name, start, stop))

    def _merge_of(self, name: str) -> Merge:
        return next(merge for merge in self._merges if name in merge.models.forms)

    @cached_property
    def _matrices(self) -> list[str]:
        """The vocabulary matrices that differ from each other."""
        return sorted({self._merge_of(name).models.matrix(name) for name in self._forms if is_vocabulary_matrix(name)})

    @cached_property
    def _readers(self) -> dict[str, Callable[[Block, np.ndarray], None]]:
        """By tensor. The statistics of the whole merge are found with the first value."""
        found = Statistics()
        for merge in self._merges:
            found = found.plus(merge.statistics())
        readers = [(merge, merge.reader(self._forms, found)) for merge in self._merges]
        return {name: reader for merge, reader in readers for name in merge.models.forms}
