"""Reading a Hugging Face checkpoint folder: its config, its tensors' places, and their bytes.

No model is loaded: tensors are read by stretches, straight from the safetensors files. Pickled files (`.bin`), in
which many older models come, are mapped into memory by torch with `weights_only=True`, which runs no code; for
them alone is torch imported.
"""

import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_merging_methods.kernels.stored_dtypes import ITEM_SIZES, SHORT_NAMES
from utils.errors import UserError
from utils.json_files import read_json_object

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED_FILE = "pytorch_model.bin"
PICKLED_INDEX_FILE = "pytorch_model.bin.index.json"

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")  # the first that is there, as PEFT does

# Buffers that old Llama checkpoints carry and no current model reads.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
_LONGEST_HEADER = 100_000_000  # bytes; the safetensors format's own limit


@dataclass(frozen=True)
class StoredTensor:
    """One tensor's place: `offset` bytes into `file`, in row-major order; or, of a pickled file, its bytes as
    torch mapped them into memory. `dtype` is safetensors' name of it, such as BF16."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0
    mapped: np.ndarray | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def item_size(self) -> int:
        """Bytes a value."""
        return ITEM_SIZES[self.dtype]


class CheckpointFolder:
    """The tensors of one model folder, by name, with positioned reads (safe from several threads).

    Raises UserError, naming file or tensor, for a missing folder, config or shard, for a safetensors file
    that is truncated or otherwise not what its header says, and for a pickled file that holds anything but
    tensors.
    """

    reads_pretrained = False  # all values are its own

    def __init__(self, folder: Path):
        self.folder = folder
        if not folder.is_dir():
            raise UserError(f"{folder}: no such model folder")
        self.config = read_json_object(folder / "config.json", "give a whole Hugging Face model folder")
        self.files = weight_files(folder)
        self._states = file_states(self.files)
        self.tensors: dict[str, StoredTensor] = {}
        for file in self.files:
            self.tensors.update(read_pickled(file) if file.suffix == ".bin" else read_header(file))
        self._check_index()
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

    def check_unchanged(self) -> None:
        """Raise UserError, naming the file, where one is not as it was when the folder was opened."""
        check_files_unchanged(self._states)

    def _check_index(self) -> None:
        index_path = index_file(self.folder)
        if index_path is None:
            return
        for name, file_name in _weight_map(index_path).items():
            if _is_ignored(name):
                continue
            if name not in self.tensors or self.tensors[name].file.name != file_name:
                raise UserError(f"{self.folder / file_name}: lacks tensor {name} that {index_path.name} lists")


FileStates = dict[Path, tuple[int, ...]]


def file_states(files: Sequence[Path]) -> FileStates:
    """What shows later whether a file was changed meanwhile."""
    return {file: _file_state(file) for file in files}


def check_files_unchanged(states: FileStates) -> None:
    """Raise UserError, naming the file, where one is not in its former state."""
    for file, state in states.items():
        if _file_state(file) != state:
            raise UserError(f"{file}: was changed while it was being read; type the command again")


def _file_state(file: Path) -> tuple[int, ...]:
    try:
        state = file.stat()
    except OSError:
        return ()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def not_finite_error(file: Path, name: str) -> UserError:
    return UserError(f"{file}: tensor {name} holds NaN or infinity; this checkpoint is broken")


def _is_ignored(name: str) -> bool:
    """Whether a stored tensor is a buffer that current models compute for themselves."""
    return name.endswith(_IGNORED_SUFFIXES)


def index_file(folder: Path) -> Path | None:
    """The index of a sharded checkpoint; None for a single file. As transformers does, safetensors before
    pickled weights, and a single file before shards."""
    for single, index in ((SINGLE_FILE, INDEX_FILE), (PICKLED_FILE, PICKLED_INDEX_FILE)):
        if (folder / single).exists():
            return None
        if (folder / index).exists():
            return folder / index
    return None


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights. Raises UserError where one is missing or there is none."""
    index = index_file(folder)
    if index is None:
        for name in (SINGLE_FILE, PICKLED_FILE):
            if (folder / name).exists():
                return [folder / name]
        raise UserError(f"{folder}: holds no weights ({SINGLE_FILE}, {PICKLED_FILE} or their shards); download them")
    files = [folder / name for name in sorted(set(_weight_map(index).values()))]
    for file in files:
        if not file.exists():
            raise UserError(f"{file}: this shard is missing, though {index.name} lists it; download it")
    return files


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (folder / ADAPTER_CONFIG_FILE).is_file()


def adapter_files(folder: Path) -> list[Path]:
    """The files that tell what an adapter changes. Raises UserError where it has no weights."""
    for name in ADAPTER_WEIGHT_FILES:
        if (folder / name).exists():
            return [folder / ADAPTER_CONFIG_FILE, folder / name]
    raise UserError(f"{folder}: holds no adapter weights ({' or '.join(ADAPTER_WEIGHT_FILES)}); download them")


def _weight_map(index_path: Path) -> Mapping[str, str]:
    weight_map = read_json_object(index_path, "download it anew").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index_path}: has no weight_map; get the file anew")
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index_path}: names a shard outside its folder ({name})")
    return weight_map


def read_pickled(file: Path) -> dict[str, StoredTensor]:
    """Every parameter in a file of torch.save, mapped into memory."""
    import torch

    try:
        state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        return {name: _mapped_tensor(file, tensor) for name, tensor in state.items() if not _is_ignored(name)}
    except Exception as error:  # torch raises errors of a dozen kinds, and the remedy is the same for all
        raise UserError(
            f"{file}: cannot be read as pickled weights alone ({type(error).__name__}); get the file anew, or save "
            "the model again as safetensors (save_pretrained)"
        ) from error


def _mapped_tensor(file: Path, tensor) -> StoredTensor:
    import torch

    dtype = SHORT_NAMES[str(tensor.dtype).removeprefix("torch.")]
    mapped = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return StoredTensor(file, dtype, tuple(tensor.shape), mapped=mapped)


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Every parameter in `file`, checked against the file's size."""

    def broken(why: str) -> UserError:
        return UserError(f"{file}: truncated or corrupt safetensors file ({why}); get the file anew")

    size = file.stat().st_size
    with open(file, "rb") as opened:
        prefix = opened.read(8)
        if len(prefix) < 8:
            raise broken("shorter than a header")
        (header_size,) = struct.unpack("<Q", prefix)
        if header_size > min(size - 8, _LONGEST_HEADER):
            raise broken("the header is longer than the file")
        try:
            header = json.loads(opened.read(header_size))
            tensors, end = _stored_tensors(file, header, 8 + header_size)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise broken("the header makes no sense") from None
    if end != size:
        raise broken(f"{size} bytes where the header describes {end}")
    return tensors


def _stored_tensors(file: Path, header: dict, data_start: int) -> tuple[dict[str, StoredTensor], int]:
    """The header's parameters in file order, and where the last tensor ends."""
    tensors = {}
    end = data_start
    header.pop("__metadata__", None)
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in ITEM_SIZES:
            raise UserError(f"{file}: tensor {name} has dtype {entry['dtype']}, which cannot be merged")
        first, last = entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (first, last, *entry["shape"])):
            raise ValueError(name)
        stored = StoredTensor(file, entry["dtype"], tuple(entry["shape"]), data_start + first)
        if stored.offset != end or last - first != stored.numel * stored.item_size:
            raise ValueError(name)
        end = data_start + last
        if not _is_ignored(name):
            tensors[name] = stored
    return tensors, end
