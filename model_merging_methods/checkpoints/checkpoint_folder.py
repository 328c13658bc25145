"""Read a Hugging Face checkpoint folder: its config, where its tensors are, and their values.

No model is loaded: tensors are read a stretch at a time, straight from the files. A pickled file (`.bin`) is mapped
into memory by torch with `weights_only=True`, which runs no code; torch is imported only for such files.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from model_merging_methods.checkpoints.quantised import quantisation_error
from model_merging_methods.checkpoints.tokenizer_reading import read_tokens
from model_merging_methods.checkpoints.vocabulary_matrices import (
    OUTPUT_EMBEDDINGS,
    Folder,
    Origin,
    is_vocabulary_matrix,
    ties_embeddings,
)
from model_merging_methods.kernels.stored_dtypes import FLOATING_CODES, SHORT_NAMES
from model_merging_methods.kernels.stored_values import all_finite, decode
from utils.errors import UserError
from utils.hub_headers import holds_headers_only
from utils.json_files import read_json_object
from utils.safetensors_files import StoredTensor, read_at, read_header
from utils.stand_ins import stand_in_remedy
from utils.weight_files import index_file, weight_files, weight_map

# Buffers, which models compute when they are built: older versions of transformers saved them. Tables of rotary
# positions; causal masks; the number that masked scores are set to (GPT-2, GPT-J, GPT-Neo, GPT-NeoX, CodeGen); numbers
# of positions 0, 1, 2, … and of token types 0, 0, 0, …
_TABLES = (
    *("rotary_emb.inv_freq", "rotary_emb.original_inv_freq", "rotary_pos_emb.inv_freq"),
    *("rotary_emb.cos_cached", "rotary_emb.sin_cached", "rotary_emb.cos", "rotary_emb.sin"),
)
_MASKS = ("attn.bias", "attention.bias", "attn.causal_mask")
_MASKED_SCORES = ("attn.masked_bias", "attention.masked_bias")
_COUNTED = ("position_ids", "token_type_ids")
_INTEGERS = ("BOOL", "U8", "I8", "I16", "I32", "I64")


class CheckpointFolder(AbstractContextManager):
    """The tensors of one model folder, by name, with positioned reads (safe from several threads).

    Of a hub model whose headers alone are here, the values are not known: a head and input embeddings that its config
    does not tie read as different constants, so that checks see them as two matrices.

    Raises UserError, naming file or tensor, for a missing folder, config or shard, for a weight file that cannot be
    read, and for weights that are quantised or were never gathered.
    """

    is_adapter = False

    def __init__(self, folder: Path):
        self.folder = folder
        if not folder.is_dir():
            raise UserError(f"{folder}: {'is a file, not a' if folder.exists() else 'no such'} model folder")
        self.files = weight_files(folder)
        self.has_values = not holds_headers_only(folder)
        self.config = read_json_object(folder / "config.json", "give a complete Hugging Face model folder")
        self.tensors: dict[str, StoredTensor] = {}
        self._buffers: set[str] = set()
        for file in self.files:
            self._add(read_weight_file(file))
        self._check_index()
        self._check_weights()
        self._descriptors = {file: os.open(file, os.O_RDONLY) for file in self.files}

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def read_into(self, buffer: np.ndarray, name: str, start: int, stop: int) -> None:
        """Put values start … stop − 1 of the flattened tensor `name`, as stored, into `buffer` (uint8, of their
        length in bytes).

        Raises UserError if the file has become shorter.
        """
        if not self.has_values:
            buffer[:] = name.endswith(OUTPUT_EMBEDDINGS) and not ties_embeddings(self.config)
            return
        stored = self.tensors[name]
        read_stored(stored, name, self._descriptors[stored.file], buffer, start, stop)

    def read_ahead(self, name: str, start: int, stop: int) -> None:
        """Have the system start reading these values from the disk."""
        stored = self.tensors[name]
        if stored.mapped is None and hasattr(os, "posix_fadvise"):
            place = stored.offset + start * stored.item_size
            length = (stop - start) * stored.item_size
            os.posix_fadvise(self._descriptors[stored.file], place, length, os.POSIX_FADV_WILLNEED)

    def origin(self, name: str) -> Origin:
        return Origin(self, name)

    def tokens(self) -> dict[str, int] | None:
        """The tokens of the vocabulary's rows; None without a tokenizer."""
        return read_tokens(self.folder)

    def files_of(self, exists: Callable[[Path], object]) -> Path:
        """The folder of a kind of file (`AdaptedFolder.files_of`)."""
        return self.folder

    def _add(self, tensors: dict[str, StoredTensor]) -> None:
        parameters = {n: stored for n, stored in tensors.items() if not is_buffer(n, stored.dtype, stored.shape)}
        self._buffers |= tensors.keys() - parameters.keys()
        doubled = next((name for name in parameters if name in self.tensors), None)
        if doubled is not None:
            files = f"{self.tensors[doubled].file.name} and {parameters[doubled].file.name}"
            raise UserError(f"{self.folder}: tensor {doubled} is in {files}; remove the shards of another save")
        self.tensors.update(parameters)

    def _check_index(self) -> None:
        index_path = index_file(self.folder)
        if index_path is None:
            return
        for name, file_name in weight_map(index_path).items():
            stored = self.tensors.get(name)
            if stored is None and (name in self._buffers or is_vocabulary_matrix(name)):
                continue  # some programs list the second name of a tied matrix, and store it once
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


def is_buffer(name: str, dtype: str, shape: Sequence[int]) -> bool:
    """Whether a stored tensor is a buffer that current models compute themselves. If another family uses the name
    for a parameter, the shape decides: `attn.bias` is a causal mask only as [1, 1, n, n]."""
    if name.endswith(_TABLES):
        return True
    if name.endswith(_MASKS):
        return len(shape) == 4 and tuple(shape[:2]) == (1, 1) and shape[2] == shape[3]
    if name.endswith(_MASKED_SCORES):
        return tuple(shape) in ((), (1,))
    return name.endswith(_COUNTED) and dtype in _INTEGERS


def read_weight_file(file: Path) -> dict[str, StoredTensor]:
    """Every tensor in `file`.

    Raises UserError, naming the file, for a truncated or corrupt file, for a pickled one that holds anything except
    tensors, and for a Git LFS pointer or a web page in its place.
    """
    remedy = stand_in_remedy(file)
    if remedy:
        raise UserError(f"{file}: {remedy}")
    return _read_pickled(file) if file.suffix == ".bin" else read_header(file)


def _read_pickled(file: Path) -> dict[str, StoredTensor]:
    import torch

    def mapped(tensor: torch.Tensor) -> StoredTensor:
        values = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
        dtype = SHORT_NAMES[str(tensor.dtype).removeprefix("torch.")]
        return StoredTensor(file, dtype, tuple(tensor.shape), mapped=values)

    try:
        with open(file, "rb") as opened:
            is_zip = opened.read(4) == b"PK\x03\x04"  # torch before 1.6 wrote others, which cannot be mapped
        state = torch.load(file, map_location="cpu", mmap=is_zip, weights_only=True)
        return {name: mapped(tensor) for name, tensor in state.items()}
    except Exception as error:  # torch raises errors of a dozen kinds, and the remedy is the same for all
        raise UserError(
            f"{file}: cannot be read as pickled weights alone ({type(error).__name__}); download it again, or save "
            "the model again as safetensors (save_pretrained)"
        ) from error


def read_stored(stored: StoredTensor, name: str, descriptor: int, buffer: np.ndarray, start: int, stop: int) -> None:
    """Put values start … stop − 1 of a stored tensor, as bytes, into `buffer`; `descriptor` is its open file.

    Raises UserError if the file has become shorter.
    """
    first, last = start * stored.item_size, stop * stored.item_size
    if stored.mapped is not None:
        buffer[:] = stored.mapped[first:last]
    elif not read_at(descriptor, buffer, stored.offset + first):
        raise UserError(f"{stored.file}: ends within tensor {name}; get the file again")


def read_bytes(source: Folder, name: str, start: int, stop: int) -> np.ndarray:
    """Values start … stop − 1 of a folder's tensor, as stored (uint8)."""
    buffer = np.empty((stop - start) * source.tensors[name].item_size, np.uint8)
    source.read_into(buffer, name, start, stop)
    return buffer


def read_float32(source: Folder, name: str, start: int, stop: int) -> np.ndarray:
    """The same values as float32. Raises UserError, naming file and tensor, if one is NaN or infinite."""
    return to_float32(read_bytes(source, name, start, stop), source.tensors[name], name)


def to_float32(raw: np.ndarray, stored: StoredTensor, name: str) -> np.ndarray:
    """Stored values (uint8) as float32. Raises UserError, naming file and tensor, if one is NaN or infinite."""
    values = np.empty(raw.size // stored.item_size, np.float32)
    decode(raw, FLOATING_CODES[stored.dtype], 0, values)
    if not all_finite(values):
        raise not_finite_error(stored.file, name)
    return values


def not_finite_error(file: Path, name: str) -> UserError:
    return UserError(f"{file}: tensor {name} holds NaN or infinity; this checkpoint is broken")
