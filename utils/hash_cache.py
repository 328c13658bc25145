"""A cache of content hashes in one small file below the user's cache folder.

An entry belongs to a file's state: device, inode, size, and the times of its last modification and change. A cache that
cannot be read or written is not used.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

SMALLEST_CACHED = 4_000_000  # bytes; hashing a smaller file takes about as long as a look into the cache
SETTLED_SECONDS = 2.0  # a file changed so recently may change again without another time, as git's index has it
_LARGEST_CACHE = 16_000_000  # bytes of values
_BUSY_SECONDS = 2.0
_TABLE = """
CREATE TABLE IF NOT EXISTS hashes (
    number INTEGER PRIMARY KEY, state TEXT NOT NULL, kind TEXT NOT NULL, value TEXT NOT NULL, UNIQUE (state, kind)
)
"""


class FileState(NamedTuple):
    """What changes with a file's content. Two files share it only if they are one file."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def file_state(path: Path) -> FileState | None:
    """The state of a file; None where there is none."""
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
    """What was kept for a file in this state; None where nothing was."""
    if state is None or state.size < SMALLEST_CACHED:
        return None
    with suppress(sqlite3.Error, OSError, RuntimeError), _opened() as cache:
        row = cache.execute("SELECT value FROM hashes WHERE state = ? AND kind = ?", (_key(state), kind)).fetchone()
        return None if row is None else row[0]
    return None


def keep(state: FileState | None, kind: str, value: str, read_since: float) -> None:
    """Keep a value that was read from a file in this state, beginning at the time `read_since`.

    Nothing is kept of a file that was changed just before: another change might leave the same times.
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
