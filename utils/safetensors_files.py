"""Read the header of a safetensors file, and bytes of its tensors."""

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError

# Every dtype of the format, with its bits per value.
ITEM_BITS = {
    **{"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "C64": 64},
    **{"I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8},
    **{"F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
    **{"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4},
}
ITEM_SIZES = {dtype: bits // 8 for dtype, bits in ITEM_BITS.items() if bits % 8 == 0}  # bytes
_LONGEST_HEADER = 100_000_000  # bytes; the format's own limit


@dataclass(frozen=True)
class StoredTensor:
    """A tensor `offset` bytes into `file`, in row-major order. For a pickled file, `mapped` has its bytes as torch
    mapped them into memory. `dtype` is safetensors' name for it, such as BF16."""

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
        """Bytes per value."""
        return ITEM_SIZES[self.dtype]

    @property
    def bytes(self) -> int:
        return self.numel * ITEM_BITS[self.dtype] // 8


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor in a safetensors file, in file order, checked against the file's size.

    Raises UserError, naming the file, for a truncated or corrupt file.
    """

    def broken(why: str) -> UserError:
        return UserError(f"{file}: truncated or corrupt safetensors file ({why}); download it again")

    size = file.stat().st_size
    with open(file, "rb") as opened:
        prefix = opened.read(8)
        if len(prefix) < 8:
            raise broken("shorter than a header")
        (header_size,) = struct.unpack("<Q", prefix)
        if header_size > min(size - 8, _LONGEST_HEADER):
            raise broken("the header is longer than the file")
        try:
            header = json.loads(opened.read(header_size), object_pairs_hook=_object_of_unique_names)
            tensors, end = _stored_tensors(file, header, 8 + header_size)
        except _DuplicateName as name:
            raise broken(f"its header has {name} twice") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise broken("the header makes no sense") from None
    if end != size:
        raise broken(f"{size} bytes, but the header describes {end}")
    return tensors


class _DuplicateName(Exception):
    """A JSON object has a name twice, which Python's reader ignores."""


def _object_of_unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateName(next(name for name in names if names.count(name) > 1))
    return unique


def _stored_tensors(file: Path, header: Mapping[str, Any], data_start: int) -> tuple[dict[str, StoredTensor], int]:
    """The header's tensors in file order, and where the last one ends."""
    tensors = {}
    end = data_start
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    for name, entry in sorted(entries, key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (first, last, *entry["shape"])):
            raise ValueError(name)
        stored = StoredTensor(file, entry["dtype"], tuple(entry["shape"]), data_start + first)
        if stored.offset != end or (last - first) * 8 != stored.numel * ITEM_BITS[stored.dtype]:
            raise ValueError(name)
        end = data_start + last
        tensors[name] = stored
    return tensors, end


def read_at(descriptor: int, buffer: np.ndarray, position: int) -> bool:
    """Fill `buffer` (uint8) from a position of an open file; False if the file ends first."""
    left = memoryview(buffer)
    while left:
        count = os.preadv(descriptor, [left], position)
        if count == 0:
            return False
        left, position = left[count:], position + count
    return True
