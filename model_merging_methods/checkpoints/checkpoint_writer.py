"""Write safetensors shards a block at a time, in any order, from several threads."""

import errno
import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.safetensors_files import ITEM_SIZES
from utils.weight_files import INDEX_FILE, SINGLE_FILE
from utils.whole_files import write_json

LARGEST_SHARD = 2_000_000_000  # bytes; an interrupted merge loses at most a shard or two


@dataclass(frozen=True)
class TensorForm:
    """The dtype (by safetensors' name) and shape in which a tensor is written."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.numel * ITEM_SIZES[self.dtype]


@dataclass(frozen=True)
class Shard:
    """A weight file, and the names of its tensors in their order."""

    file: str
    names: tuple[str, ...]


def plan_shards(forms: Mapping[str, TensorForm], largest_shard: int = LARGEST_SHARD) -> list[Shard]:
    """Tensors in their order, cut into files of at most `largest_shard` bytes (or one tensor)."""
    return plan_shards_of_parts([forms], largest_shard)[0]


def plan_shards_of_parts(
    parts: Sequence[Mapping[str, TensorForm]], largest_shard: int = LARGEST_SHARD
) -> list[list[Shard]]:
    """The same for several parts of one model, which share no file."""
    cuts = [_cut(forms, largest_shard) for forms in parts]
    total, number, shards = sum(map(len, cuts)), 0, []
    for of_part in cuts:
        shards.append([])
        for names in of_part:
            number += 1
            file = SINGLE_FILE if total == 1 else f"model-{number:05d}-of-{total:05d}.safetensors"
            shards[-1].append(Shard(file, tuple(names)))
    return shards


def _cut(forms: Mapping[str, TensorForm], largest_shard: int) -> list[list[str]]:
    cuts: list[list[str]] = [[]]
    filled = 0
    for name, form in forms.items():
        if cuts[-1] and filled + form.bytes > largest_shard:
            cuts.append([])
            filled = 0
        cuts[-1].append(name)
        filled += form.bytes
    return cuts


def write_index(folder: Path, shards: Sequence[Shard], forms: Mapping[str, TensorForm]) -> None:
    """Write the index of each tensor's file, if there are several."""
    if len(shards) > 1:
        total = sum(form.bytes for form in forms.values())
        weight_map = {name: shard.file for shard in shards for name in shard.names}
        write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


class CheckpointWriter(AbstractContextManager):
    """Weight files of an unfinished model folder: created at full length, then filled block by block."""

    def __init__(self, folder: Path, shards: Sequence[Shard], forms: Mapping[str, TensorForm]):
        self._folder = folder
        self.shards = shards
        self.forms = forms
        self._places: dict[str, tuple[int, int]] = {}  # tensor -> descriptor, offset
        self._descriptors: dict[str, int] = {}
        try:
            for shard in shards:
                self._start_shard(shard)
        except BaseException:
            self.__exit__()
            raise

    def write(self, name: str, start: int, block: np.ndarray) -> None:
        """Put the bytes of a block (uint8) at the flattened position `start` of tensor `name`."""
        descriptor, offset = self._places[name]
        data = memoryview(block)
        position = offset + start * ITEM_SIZES[self.forms[name].dtype]
        while data:
            try:
                count = os.pwrite(descriptor, data, position)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self._folder)) from error
            _start_writing_back(descriptor, position, count)
            data, position = data[count:], position + count

    def sync(self, shard: Shard) -> None:
        """Wait until a shard's bytes are on the disk."""
        os.fsync(self._descriptors[shard.file])

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def _start_shard(self, shard: Shard) -> None:
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for name in shard.names:
            form = self.forms[name]
            header[name] = {
                "dtype": form.dtype,
                "shape": list(form.shape),
                "data_offsets": [end, end + form.bytes],
            }
            end += form.bytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format keeps the data aligned to 8 bytes
        descriptor = os.open(self._folder / shard.file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self._descriptors[shard.file] = descriptor
        os.pwrite(descriptor, struct.pack("<Q", len(text)) + text, 0)
        data_start = 8 + len(text)
        _allocate(descriptor, data_start + end)
        for name in shard.names:
            self._places[name] = (descriptor, data_start + header[name]["data_offsets"][0])


def _start_writing_back(descriptor: int, position: int, count: int) -> None:
    """Have the system start writing these bytes to the disk, so that the last sync has less to wait for."""
    if hasattr(os, "posix_fadvise"):  # not on macOS
        os.posix_fadvise(descriptor, position, count, os.POSIX_FADV_DONTNEED)


def _allocate(descriptor: int, size: int) -> None:
    """Give a file its full size, and reserve the space on the disk if the system can."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except (AttributeError, OSError) as error:  # macOS has no such call, some file systems refuse it
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        os.ftruncate(descriptor, size)
