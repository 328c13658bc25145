"""Writing safetensors shards a block at a time, in any order, from several threads."""

import errno
import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model_merging_methods.checkpoint_folder import INDEX_FILE, SAFETENSORS_NAMES, SINGLE_FILE
from utils.errors import UserError
from utils.whole_files import write_json

LARGEST_SHARD = 5_000_000_000  # bytes, as transformers splits


@dataclass(frozen=True)
class TensorForm:
    """What is written of a tensor: its dtype and shape."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.numel * self.dtype.itemsize


class CheckpointWriter:
    """The weights of a model folder in the making: files of full length from the start, blocks put in place."""

    def __init__(self, folder: Path, forms: Mapping[str, TensorForm], largest_shard: int = LARGEST_SHARD):
        self._forms = forms
        self._places: dict[str, tuple[int, int]] = {}  # tensor -> descriptor, offset
        self._descriptors: list[int] = []
        shards = _split(forms, largest_shard)
        weight_map = {}
        for number, names in enumerate(shards, start=1):
            file = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            self._start_shard(folder / file, names)
            weight_map.update(dict.fromkeys(names, file))
        if len(shards) > 1:
            total = sum(form.bytes for form in forms.values())
            write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})

    def write(self, name: str, start: int, block: Tensor) -> None:
        """Put `block`, cast to the tensor's dtype, at the flattened position `start` of tensor `name`.

        Raises UserError, naming the tensor, where the cast values are not all finite.
        """
        descriptor, offset = self._places[name]
        dtype = self._forms[name].dtype
        cast = block.to(dtype)
        if len(cast) and dtype.is_floating_point and not math.isfinite(cast.abs().max()):
            raise UserError(
                f"tensor {name}: the merged values do not fit into {str(dtype).removeprefix('torch.')}; choose a "
                "smaller --scaling_coefficient or --dtype float32"
            )
        data = memoryview(cast.view(torch.uint8).numpy()) if len(cast) else memoryview(b"")
        position = offset + start * dtype.itemsize
        while data:
            count = os.pwrite(descriptor, data, position)
            data, position = data[count:], position + count

    def close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_shard(self, file: Path, names: list[str]) -> None:
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for name in names:
            form = self._forms[name]
            header[name] = {
                "dtype": SAFETENSORS_NAMES[form.dtype],
                "shape": list(form.shape),
                "data_offsets": [end, end + form.bytes],
            }
            end += form.bytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format keeps the data aligned to 8 bytes
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self._descriptors.append(descriptor)
        os.pwrite(descriptor, struct.pack("<Q", len(text)) + text, 0)
        data_start = 8 + len(text)
        _allocate(descriptor, data_start + end)
        for name in names:
            self._places[name] = (descriptor, data_start + header[name]["data_offsets"][0])


def _allocate(descriptor: int, size: int) -> None:
    """Give a file its full size, with its place on the disk where the system can reserve one."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except (AttributeError, OSError) as error:  # macOS has no such call, some file systems refuse it
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        os.ftruncate(descriptor, size)


def _split(forms: Mapping[str, TensorForm], largest_shard: int) -> list[list[str]]:
    """Tensor names in their order, cut into shards of at most `largest_shard` bytes (or one tensor)."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, form in forms.items():
        if shards[-1] and filled + form.bytes > largest_shard:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += form.bytes
    return shards
