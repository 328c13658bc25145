"""Content hashes, which identify inputs and results.

A file's hash is the xxh3_128 of its bytes. The hash of a safetensors file covers its tensors: their names, dtypes,
shapes and the digests of their values. A tensor's digest combines the digests of its stretches of STRETCH values, so
that a merge gets it from the blocks that it reads anyway.

Hashes of large files are cached in one small file below the user's cache folder. An entry belongs to a file's state:
device, inode, size, and the times of its last modification and change. A cache that cannot be read or written is
ignored.
"""

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from utils.errors import UserError
from utils.machine import available_cores
from utils.safetensors_files import StoredTensor, read_at, read_header

STRETCH = 1 << 19  # values
DIGEST_SIZE = 16  # bytes, of xxh3_128
_BYTES, _TENSORS = "bytes", "tensors"  # kinds of cache entries
_READ_AT_ONCE = 1 << 22  # bytes

SMALLEST_CACHED = 4_000_000  # bytes; hashing a smaller file is about as fast as a cache lookup
SETTLED_SECONDS = 2.0  # a newer file may change again within one tick of its timestamp, as in git's index
_LARGEST_CACHE = 16_000_000  # bytes of values
_BUSY_SECONDS = 2.0
_TABLE = """
CREATE TABLE IF NOT EXISTS hashes (
    number INTEGER PRIMARY KEY, state TEXT NOT NULL, kind TEXT NOT NULL, value TEXT NOT NULL, UNIQUE (state, kind)
)
"""


class FileState(NamedTuple):
    """Metadata that changes with a file's content. Two files have the same state only if they are one file."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


FileStates = dict[Path, FileState | None]


@dataclass(frozen=True)
class FileOnRecord:
    """A file that a merge read or wrote, with its size and the hash of its content."""

    name: str
    bytes: int
    xxh3_128: str


def content_hash(path: Path) -> str:
    """The hash of a file's content, in hexadecimal."""
    if path.suffix != ".safetensors":
        return bytes_hash(path)
    try:
        tensors = read_header(path)
    except UserError:
        return bytes_hash(path)
    state, since = file_state(path), time.time()
    digests = recall_digests(state)
    missing = {name: stored for name, stored in tensors.items() if name not in digests}
    if missing:
        digests |= _read_digests(path, missing)
        if file_state(path) == state:
            keep_digests(state, digests, since)
    return tensors_hash((name, stored.dtype, stored.shape, digests[name]) for name, stored in tensors.items())


def bytes_hash(path: Path) -> str:
    """The hash of a file's bytes."""
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
    """A hash of everything in a folder."""
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
    """Cache digests of a weight file's tensors that were read after the time `read_since`."""
    keep(state, _TENSORS, json.dumps(digests), read_since)


def file_states(files: Iterable[Path]) -> FileStates:
    """The states of files, to detect later whether one has changed."""
    return {file: file_state(file) for file in files}


def check_unchanged(before: FileStates, now: FileStates) -> None:
    """Raise UserError, naming the file, if a file was changed, added or removed."""
    for file in {**before, **now}:
        if before.get(file) != now.get(file):
            raise UserError(f"{file}: was changed while it was being read; run the command again")


@contextmanager
def unchanged(files: Sequence[Path]):
    """Raise UserError, naming the file, if one changes while the block reads them."""
    before = file_states(files)
    yield
    check_unchanged(before, file_states(files))


def stretch_digest(values: np.ndarray) -> np.ndarray:
    """The digest of a stretch's bytes (uint8), as uint8."""
    return np.frombuffer(xxhash.xxh3_128_digest(values), np.uint8)


def tensor_digest(stretches: np.ndarray) -> str:
    """The digest of a tensor, in hexadecimal, from those of its stretches: uint8 [stretches, 16]."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(stretches))


def read_tensor_digest(stored: StoredTensor, read: Callable[[np.ndarray, int], object], stretch: int = STRETCH) -> str:
    """The digest of a tensor in stretches of this many values. `read` fills a buffer from a given byte on."""
    size = max(stretch * stored.bytes // max(stored.numel, 1), 1)  # bytes of a stretch
    buffer = np.empty(min(size, stored.bytes), np.uint8)
    digests = []
    for start in range(0, stored.bytes, size):
        values = buffer[: stored.bytes - start]
        read(values, start)
        digests.append(stretch_digest(values))
    return tensor_digest(np.array(digests, np.uint8))


def _read_digests(path: Path, tensors: Mapping[str, StoredTensor]) -> dict[str, str]:
    """The digests of these tensors of a file."""
    with open(path, "rb", buffering=0) as file, ThreadPoolExecutor(len(available_cores())) as pool:

        def digest(stored: StoredTensor) -> str:
            return read_tensor_digest(stored, lambda *place: read_at(file.fileno(), place[0], stored.offset + place[1]))

        return dict(zip(tensors, pool.map(digest, tensors.values()), strict=True))


def file_state(path: Path) -> FileState | None:
    """The state of a file; None if it does not exist."""
    try:
        found = path.stat()
    except OSError:
        return None
    return FileState(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def cache_file() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(folder) if os.path.isabs(folder) else Path.home() / ".cache"
    return root / "mixup_model_merge" / "content_hashes.sqlite"


def recall(state: FileState | None, kind: str) -> str | None:
    """The cached value for a file in this state, if any."""
    if state is None or state.size < SMALLEST_CACHED:
        return None
    with suppress(sqlite3.Error, OSError, RuntimeError), _opened() as cache:
        row = cache.execute("SELECT value FROM hashes WHERE state = ? AND kind = ?", (_key(state), kind)).fetchone()
        return None if row is None else row[0]
    return None


def keep(state: FileState | None, kind: str, value: str, read_since: float) -> None:
    """Cache a value that was read from a file in this state after the time `read_since`.

    A file that has just changed is not cached, because another change might leave the same times.
    """
    if state is None or state.size < SMALLEST_CACHED:
        return
    if max(state.modified_ns, state.changed_ns) / 1e9 > read_since - SETTLED_SECONDS:
        return
    with suppress(sqlite3.Error, OSError, RuntimeError), _opened() as cache, cache:
        cache.execute("INSERT OR REPLACE INTO hashes (state, kind, value) VALUES (?, ?, ?)", (_key(state), kind, value))
        if cache.execute("SELECT SUM(LENGTH(value)) FROM hashes").fetchone()[0] > _LARGEST_CACHE:
            half = "SELECT number FROM hashes ORDER BY number LIMIT (SELECT COUNT(*) / 2 FROM hashes)"
            cache.execute(f"DELETE FROM hashes WHERE number IN ({half})")


@contextmanager
def _opened() -> Iterator[sqlite3.Connection]:
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=_BUSY_SECONDS)) as connection:
        connection.execute(_TABLE)
        yield connection


def _key(state: FileState) -> str:
    return " ".join(map(str, state))
