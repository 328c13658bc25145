"""Hashes of what files hold, by which inputs and results are known again.

A file's hash is the xxh3_128 of its bytes. The hash of a safetensors file is that of its tensors: of their names,
dtypes, shapes and the digests of their values. A tensor's digest comes from the digests of its stretches of STRETCH
values, so that a merge gets it from the blocks that it reads anyway. Hashes of large files are cached (`hash_cache`).
"""

import json
import math
import os
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from utils.cores import available_cores
from utils.errors import UserError
from utils.hash_cache import FileState, file_state, keep, recall

STRETCH = 1 << 19  # values
_BYTES, _TENSORS = "bytes", "tensors"  # kinds of cache entries
_READ_AT_ONCE = 1 << 22  # bytes
_LONGEST_HEADER = 100_000_000  # bytes; the safetensors format's own limit

FileStates = dict[Path, FileState | None]


@dataclass(frozen=True)
class FileOnRecord:
    """A file that a merge read or wrote, with its size and the hash of its content."""

    name: str
    bytes: int
    xxh3_128: str


class _Place(NamedTuple):
    """A tensor's dtype and shape, and its bytes start … stop − 1 in the file."""

    dtype: str
    shape: list[int]
    start: int
    stop: int


def content_hash(path: Path) -> str:
    """The hash of a file's content, in hexadecimal."""
    places = _tensor_places(path) if path.suffix == ".safetensors" else None
    if places is None:
        return bytes_hash(path)
    state, since = file_state(path), time.time()
    digests = recall_digests(state)
    missing = [name for name in places if name not in digests]
    if missing:
        digests |= _read_digests(path, {name: places[name] for name in missing})
        if file_state(path) == state:
            keep_digests(state, digests, since)
    return tensors_hash((name, place.dtype, place.shape, digests[name]) for name, place in places.items())


def bytes_hash(path: Path) -> str:
    """The hash of a file's bytes, whatever they mean."""
    state, since = file_state(path), time.time()
    known = recall(state, _BYTES)
    if known is not None:
        return known
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_READ_AT_ONCE):
            digest.update(chunk)
    if file_state(path) == state:
        keep(state, _BYTES, digest.hexdigest(), since)
    return digest.hexdigest()


def files_hash(files: Iterable[Path]) -> str:
    """A hash of some files' names and contents, in their order."""
    return json_hash([[path.name, content_hash(path)] for path in files])


def folder_hash(folder: Path) -> str:
    """A hash of all that a folder holds."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return json_hash([[str(path.relative_to(folder)), content_hash(path)] for path in files])


def json_hash(value: Any) -> str:
    """A hash of a JSON value."""
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True, default=str).encode())


def tensors_hash(tensors: Iterable[tuple[str, str, Sequence[int], str | None]]) -> str:
    """The hash of tensors in their order: each one's name, dtype, shape and digest."""
    return xxhash.xxh3_128_hexdigest(json.dumps(list(tensors)).encode())


def recall_digests(state: FileState | None) -> dict[str, str]:
    """The digests of a weight file's tensors that are cached, by name."""
    return json.loads(recall(state, _TENSORS) or "{}")


def keep_digests(state: FileState | None, digests: Mapping[str, str], read_since: float) -> None:
    """Cache the digests of a weight file's tensors, or of some, that were read beginning at the time `read_since`."""
    keep(state, _TENSORS, json.dumps(digests), read_since)


def file_states(files: Iterable[Path]) -> FileStates:
    """The states of files, which show later whether one was changed meanwhile."""
    return {file: file_state(file) for file in files}


def check_unchanged(before: FileStates, now: FileStates) -> None:
    """Raise UserError, naming the file, where a file is not in its former state, came or went."""
    for file in {**before, **now}:
        if before.get(file) != now.get(file):
            raise UserError(f"{file}: was changed while it was being read; run the command again")


@contextmanager
def unchanged(files: Sequence[Path]):
    """Raise UserError, naming the file, where one changes while the block reads them."""
    before = file_states(files)
    yield
    check_unchanged(before, file_states(files))


def _tensor_places(path: Path) -> dict[str, _Place] | None:
    """The tensors of a safetensors file in the order of their values; None where they are not all of the file."""
    try:
        with open(path, "rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > _LONGEST_HEADER:
                return None
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        places = {
            name: _Place(entry["dtype"], entry["shape"], *(8 + size + offset for offset in entry["data_offsets"]))
            for name, entry in header.items()
        }
        places = dict(sorted(places.items(), key=lambda item: (item[1].start, item[1].stop)))
        ends = [8 + size, *(place.stop for place in places.values())]
        starts = [*(place.start for place in places.values()), path.stat().st_size]
        return places if starts == ends else None
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _read_digests(path: Path, places: Mapping[str, _Place]) -> dict[str, str]:
    """The digests of these tensors of a file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(len(available_cores())) as pool:
            digests = pool.map(lambda place: _read_digest(descriptor, place), places.values())
            return dict(zip(places, digests, strict=True))
    finally:
        os.close(descriptor)


def _read_digest(descriptor: int, place: _Place) -> str:
    stretch = max(STRETCH * (place.stop - place.start) // max(math.prod(place.shape), 1), 1)
    buffer = memoryview(bytearray(min(stretch, place.stop - place.start)))
    digests = b""
    for start in range(place.start, place.stop, stretch):
        values = buffer[: place.stop - start]
        left, position = values, start
        while left and (count := os.preadv(descriptor, [left], position)):
            left, position = left[count:], position + count
        digests += xxhash.xxh3_128_digest(values)
    return xxhash.xxh3_128_hexdigest(digests)
