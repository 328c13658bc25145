"""Reading a Hugging Face checkpoint folder: its config, its tensors' places, and their bytes.

No model is loaded: tensors are read by stretches, straight from the safetensors files. Pickled files (`.bin`), in
which many older models come, are mapped into memory by torch with `weights_only=True`, which runs no code.
"""

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import UserError
from utils.json_files import read_json_object

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED_FILE = "pytorch_model.bin"
PICKLED_INDEX_FILE = "pytorch_model.bin.index.json"

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
SAFETENSORS_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}

# Buffers that old Llama checkpoints carry and no current model reads.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
_LONGEST_HEADER = 100_000_000  # bytes; the safetensors format's own limit


@dataclass(frozen=True)
class StoredTensor:
    """One tensor's place: `offset` bytes into `file`, in row-major order; or, of a pickled file, the tensor
    that torch mapped into memory."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int = 0
    mapped: Tensor | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


class CheckpointFolder:
    """The tensors of one model folder, by name, with positioned reads (safe from several threads).

    Raises UserError, naming file or tensor, for a missing folder, config or shard, for a safetensors file
    that is truncated or otherwise not what its header says, and for a pickled file that holds anything but
    tensors.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        if not folder.is_dir():
            raise UserError(f"{folder}: no such model folder")
        self.config = read_json_object(folder / "config.json", "give a whole Hugging Face model folder")
        self.files = weight_files(folder)
        self.tensors: dict[str, StoredTensor] = {}
        for file in self.files:
            self.tensors.update(_read_pickled(file) if file.suffix == ".bin" else _read_header(file))
        self._check_index()
        self._descriptors = {file: os.open(file, os.O_RDONLY) for file in self.files if file.suffix != ".bin"}

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def __enter__(self) -> "CheckpointFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Values start … stop − 1 of the flattened tensor `name`, in its stored dtype.

        Raises UserError when the file has become shorter than it was.
        """
        stored = self.tensors[name]
        if stored.mapped is not None:
            return stored.mapped.reshape(-1)[start:stop].clone()
        block = torch.empty(stop - start, dtype=stored.dtype)
        buffer = memoryview(block.view(torch.uint8).numpy()) if len(block) else memoryview(b"")
        position = stored.offset + start * stored.dtype.itemsize
        while buffer:
            count = os.preadv(self._descriptors[stored.file], [buffer], position)
            if count == 0:
                raise UserError(f"{stored.file}: ends within tensor {name}; get the file anew")
            buffer, position = buffer[count:], position + count
        return block

    def read_float32(self, name: str, start: int, stop: int) -> Tensor:
        """The same values as float32. Raises UserError, naming the tensor, where one is NaN or infinite."""
        block = self.read(name, start, stop).float()
        if len(block) and not math.isfinite(block.abs().max()):
            raise UserError(
                f"{self.tensors[name].file}: tensor {name} holds NaN or infinity; this checkpoint is broken"
            )
        return block

    def _check_index(self) -> None:
        index_path = index_file(self.folder)
        if index_path is None:
            return
        for name, file_name in _weight_map(index_path).items():
            if _is_ignored(name):
                continue
            if name not in self.tensors or self.tensors[name].file.name != file_name:
                raise UserError(f"{self.folder / file_name}: lacks tensor {name} that {index_path.name} lists")


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


def _weight_map(index_path: Path) -> Mapping[str, str]:
    weight_map = read_json_object(index_path, "download it anew").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index_path}: has no weight_map; get the file anew")
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index_path}: names a shard outside its folder ({name})")
    return weight_map


def _read_pickled(file: Path) -> dict[str, StoredTensor]:
    """Every parameter in a file of torch.save, mapped into memory."""
    try:
        state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        items = [(name, tensor) for name, tensor in state.items() if not _is_ignored(name)]
        if not all(isinstance(tensor, Tensor) for _, tensor in items):
            raise TypeError("not a tensor")
    except Exception as error:  # torch raises errors of a dozen kinds, and the remedy is the same for all
        raise UserError(
            f"{file}: cannot be read as pickled weights alone ({type(error).__name__}); get the file anew, or save "
            "the model again as safetensors (save_pretrained)"
        ) from error
    return {name: StoredTensor(file, tensor.dtype, tuple(tensor.shape), mapped=tensor) for name, tensor in items}


def _read_header(file: Path) -> dict[str, StoredTensor]:
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
        if entry["dtype"] not in TORCH_DTYPES:
            raise UserError(f"{file}: tensor {name} has dtype {entry['dtype']}, which cannot be merged")
        first, last = entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (first, last, *entry["shape"])):
            raise ValueError(name)
        stored = StoredTensor(file, TORCH_DTYPES[entry["dtype"]], tuple(entry["shape"]), data_start + first)
        if stored.offset != end or last - first != stored.numel * stored.dtype.itemsize:
            raise ValueError(name)
        end = data_start + last
        if not _is_ignored(name):
            tensors[name] = stored
    return tensors, end
