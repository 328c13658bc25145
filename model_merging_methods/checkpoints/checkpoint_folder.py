"""Reading a Hugging Face checkpoint folder: its config, its tensors' places, and their bytes.

No model is loaded: tensors are read by stretches, straight from the files.
"""

import os
from pathlib import Path

import numpy as np

from model_merging_methods.checkpoints.buffers import is_buffer
from model_merging_methods.checkpoints.quantised import quantisation_error
from model_merging_methods.checkpoints.stored_tensors import StoredTensor, read_weight_file
from model_merging_methods.checkpoints.vocabulary_matrices import is_vocabulary_matrix
from utils.errors import UserError
from utils.json_files import read_json_object
from utils.weight_files import index_file, weight_files, weight_map


class CheckpointFolder:
    """The tensors of one model folder, by name, with positioned reads (safe from several threads).

    Raises UserError, naming file or tensor, for a missing folder, config or shard, for a weight file that cannot be
    read (`stored_tensors`), and for weights that are quantised or were never gathered.
    """

    reads_pretrained = False  # all values are its own

    def __init__(self, folder: Path):
        self.folder = folder
        if not folder.is_dir():
            raise UserError(f"{folder}: {'is a file, not a' if folder.exists() else 'no such'} model folder")
        self.files = weight_files(folder)
        self.config = read_json_object(folder / "config.json", "give a whole Hugging Face model folder")
        self.tensors: dict[str, StoredTensor] = {}
        self._buffers: set[str] = set()  # stored, and passed over
        for file in self.files:
            self._add(read_weight_file(file))
        self._check_index()
        self._check_weights()
        self._descriptors = {file: os.open(file, os.O_RDONLY) for file in self.files}

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def __enter__(self) -> "CheckpointFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read_into(self, buffer: np.ndarray, name: str, start: int, stop: int) -> None:
        """Put values start … stop − 1 of the flattened tensor `name`, as stored, into `buffer` (uint8, of their
        length in bytes).

        Raises UserError when the file has become shorter than it was.
        """
        stored = self.tensors[name]
        first, last = start * stored.item_size, stop * stored.item_size
        if stored.mapped is not None:
            buffer[:] = stored.mapped[first:last]
            return
        left, position = memoryview(buffer), stored.offset + first
        while left:
            count = os.preadv(self._descriptors[stored.file], [left], position)
            if count == 0:
                raise UserError(f"{stored.file}: ends within tensor {name}; get the file anew")
            left, position = left[count:], position + count

    def read_ahead(self, name: str, start: int, stop: int) -> None:
        """Ask the system to bring these values from the disk, without waiting for them."""
        stored = self.tensors[name]
        if stored.mapped is None and hasattr(os, "posix_fadvise"):
            place = stored.offset + start * stored.item_size
            length = (stop - start) * stored.item_size
            os.posix_fadvise(self._descriptors[stored.file], place, length, os.POSIX_FADV_WILLNEED)

    def _add(self, stored_tensors: dict[str, StoredTensor]) -> None:
        tensors = {
            name: stored for name, stored in stored_tensors.items() if not is_buffer(name, stored.dtype, stored.shape)
        }
        self._buffers |= stored_tensors.keys() - tensors.keys()
        doubled = next((name for name in tensors if name in self.tensors), None)
        if doubled is not None:
            files = f"{self.tensors[doubled].file.name} and {tensors[doubled].file.name}"
            raise UserError(f"{self.folder}: tensor {doubled} is in {files}; remove the shards of another save")
        self.tensors.update(tensors)

    def _check_index(self) -> None:
        index_path = index_file(self.folder)
        if index_path is None:
            return
        for name, file_name in weight_map(index_path).items():
            stored = self.tensors.get(name)
            if stored is None and (name in self._buffers or is_vocabulary_matrix(name)):
                continue  # the second name of a tied matrix is listed by some, and stored by none
            if stored is None or stored.file.name != file_name:
                raise UserError(f"{self.folder / file_name}: lacks tensor {name} that {index_path.name} lists")

    def _check_weights(self) -> None:
        quantised = quantisation_error(self.config, self.tensors)
        if quantised:
            raise UserError(f"{self.folder}: {quantised}")
        empty = [name for name, stored in self.tensors.items() if stored.shape == (0,)]
        if empty:
            raise UserError(
                f"{self.folder}: {len(empty)} of {len(self.tensors)} tensors are empty ({empty[0]}), as DeepSpeed "
                "ZeRO-3 saves them without gathering; run its zero_to_fp32.py and give the folder of the result"
            )


def not_finite_error(file: Path, name: str) -> UserError:
    return UserError(f"{file}: tensor {name} holds NaN or infinity; this checkpoint is broken")
