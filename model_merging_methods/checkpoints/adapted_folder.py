"""A LoRA adapter on the pretrained model, read as the folder of the whole fine-tune would be."""

from pathlib import Path

import numpy as np

from model_merging_methods.checkpoints.checkpoint_folder import CheckpointFolder
from model_merging_methods.checkpoints.lora_adapter import LoraAdapter, add_low_rank
from model_merging_methods.checkpoints.stored_tensors import StoredTensor
from model_merging_methods.checkpoints.tensor_names import without_wrappers
from model_merging_methods.kernels.block_kernels import decode
from model_merging_methods.kernels.stored_dtypes import FLOATING_CODES


class AdaptedFolder:
    """What `CheckpointFolder` is, of a PEFT folder: tensors that the adapter changes are computed in float32 from the
    pretrained model's, stretch by stretch; the others are the pretrained model's.

    Raises UserError for an adapter that does not fit the pretrained model (`lora_adapter`).
    """

    reads_pretrained = True

    def __init__(self, folder: Path, pretrained: CheckpointFolder):
        self.folder = folder
        self.config = pretrained.config
        self._pretrained = pretrained
        shapes = {without_wrappers(name): stored.shape for name, stored in pretrained.tensors.items()}
        self._adapter = LoraAdapter(folder, shapes)
        self.made_for = self._adapter.made_for
        self.files = self._adapter.files
        self.tensors = dict(pretrained.tensors)
        for name, stored in pretrained.tensors.items():
            changed = without_wrappers(name)
            replacement = self._adapter.replaced.get(changed)
            if replacement is not None or changed in self._adapter.low_rank:
                self.tensors[name] = StoredTensor(self.files[-1], "F32", (replacement or stored).shape)

    def close(self) -> None:
        """There is nothing of its own to close."""

    def __enter__(self) -> "AdaptedFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read_into(self, buffer: np.ndarray, name: str, start: int, stop: int) -> None:
        """Put values start … stop − 1 of the flattened tensor `name` into `buffer` (uint8): as float32 where the
        adapter changes it, else as stored."""
        changed = without_wrappers(name)
        change = self._adapter.low_rank.get(changed)
        if changed in self._adapter.replaced:
            values = self._adapter.read_replaced(changed, start, stop)
        elif change is not None:
            values = self._read_pretrained(name, start, stop)
        else:
            self._pretrained.read_into(buffer, name, start, stop)
            return
        if change is not None:
            add_low_rank(values, change, start)
        buffer.view(np.float32)[:] = values

    def read_ahead(self, name: str, start: int, stop: int) -> None:
        """Ask the system to bring what these values are made of from the disk, without waiting for it."""
        if without_wrappers(name) not in self._adapter.replaced:
            self._pretrained.read_ahead(name, start, stop)

    def _read_pretrained(self, name: str, start: int, stop: int) -> np.ndarray:
        stored = self._pretrained.tensors[name]
        buffer = np.empty((stop - start) * stored.item_size, np.uint8)
        self._pretrained.read_into(buffer, name, start, stop)
        values = np.empty(stop - start, np.float32)
        decode(buffer, FLOATING_CODES[stored.dtype], 0, values)
        return values
