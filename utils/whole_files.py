"""Write files and folders completely or not at all, and lock names."""

import errno
import fcntl
import glob
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

from utils.errors import UserError


class Busy(UserError):
    """Another process is working on a name."""


_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # from flock, on a file system without locks
_TRIES = 100  # to make a lock in a folder that others remove


def unfinished_name(final: Path) -> Path:
    """The hidden sibling in which the folder `final` is built."""
    return _hidden_name(final, "unfinished")


def _hidden_name(final: Path, state: str) -> Path:
    return final.with_name(f".{final.name}.{state}")


def is_free(path: Path) -> bool:
    """Whether there is nothing at a path, or an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` (or the content of a file) durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, blocking: bool = False) -> Iterator[None]:
    """Lock the name `path`, whether or not it exists, for this process; a kill releases it.

    The lock is a hidden file next to `path`. If another process holds it, raises Busy, or waits if `blocking`. Folders
    created for the lock are removed with it if they are still empty.
    """
    lock = _hidden_name(path, "lock")
    made_parents = [parent for parent in lock.parents if not parent.exists()]
    try:
        descriptor = _hold(lock, path, blocking)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            os.close(descriptor)
    finally:
        for parent in made_parents:
            with suppress(OSError):  # not empty
                parent.rmdir()


def _hold(lock: Path, path: Path, blocking: bool) -> int:
    """Lock the lock file; returns its descriptor."""
    tries = 0
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
            except BlockingIOError:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "starting"
                os.close(descriptor)
                raise Busy(f"{path}: another process ({holder}) is at work there; rerun when it has ended") from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    os.close(descriptor)
                    raise
                _warn_of_missing_locks(lock.parent)
            if _is_named(descriptor, lock):
                os.pwrite(descriptor, f"{os.getpid()} on {os.uname().nodename}".encode(), 0)
                return descriptor
            os.close(descriptor)  # its holder has just removed it: try again
        except FileNotFoundError:  # another process has just removed the folder: try again
            tries += 1
            if tries == _TRIES:  # a file system that takes no files
                raise


def _is_named(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one at `path`."""
    return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())


def remove_left_lock(path: Path) -> None:
    """Remove a lock of `path` left by a killed process, if there is one."""
    _remove_unless_held(_hidden_name(path, "lock"))


@cache  # once for each folder
def _warn_of_missing_locks(folder: Path) -> None:
    print(
        f"warning: {folder}: this file system has no locks (flock), so two runs at once could mix their results; "
        "run one at a time, or choose another --output_dir",
        file=sys.stderr,
    )


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a hidden sibling of `path` to write to, and move it to `path` in one step if the block succeeds.

    Each call has a separate sibling. The next call for `path` removes any that a killed process left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.unfinished"):
        _remove_unless_held(left)
    unfinished, descriptor = _make_unfinished(path)
    try:
        with errors_name(path):
            yield unfinished
            os.fsync(descriptor)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


@contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Add the path to an OSError that names none, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _make_unfinished(path: Path) -> tuple[Path, int]:
    """Make an empty sibling of `path`, locked so that no other process takes it for a leftover."""
    while True:
        unfinished = _hidden_name(path, f"{secrets.token_hex(4)}.unfinished")
        descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with suppress(OSError):  # no locks there, so no process removes it
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _is_named(descriptor, unfinished):
            return unfinished, descriptor
        os.close(descriptor)  # it was removed before it was locked


def _remove_unless_held(path: Path) -> None:
    with suppress(OSError), open(path, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, replacing an earlier file in one step."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, replacing an earlier file in one step."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def whole_folder(final: Path, replace: bool = False, is_locked: bool = False) -> Iterator[Path]:
    """Yield a hidden folder next to `final`, and move it to `final` if the block succeeds.

    An existing `final` is replaced only if it is empty, or with `replace`. An error in the block leaves nothing behind;
    a kill or Ctrl-C leaves the hidden folder, and the next call for the same `final` finds its content, to resume from
    or to empty.
    `is_locked`: the caller holds `locked(final)`.
    Raises UserError if another process is making the same folder, or has made it meanwhile.
    """
    unfinished = unfinished_name(final)
    with nullcontext() if is_locked else locked(final):
        finish_replacing(final)
        unfinished.mkdir(exist_ok=True)
        try:
            yield unfinished
            for path in (*unfinished.rglob("*"), unfinished):
                sync_folder(path)
            if not is_free(final) and not replace:
                raise UserError(f"{final}: another run has written it meanwhile; rerun the command")
            _put_in_place(unfinished, final)
        except Exception:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise


def _put_in_place(unfinished: Path, final: Path) -> None:
    """Move a complete folder to its name. After a kill at any moment `finish_replacing` finds the old or new one."""
    replaced = _hidden_name(final, "replaced")
    if not final.exists():
        unfinished.replace(final)
    else:
        unfinished.replace(replaced)
        if not _exchange(replaced, final):
            replaced.replace(unfinished)
            final.replace(replaced)
            unfinished.replace(final)
    sync_folder(final.parent)
    finish_replacing(final)


def is_half_replaced(final: Path) -> bool:
    """Whether a replacement or removal of `final` is in progress, or was killed."""
    return any(_hidden_name(final, state).exists() for state in ("replaced", "removed"))


def finish_replacing(final: Path) -> None:
    """Finish or undo a killed replacement or removal; the caller holds `locked(final)`."""
    replaced = _hidden_name(final, "replaced")
    if replaced.exists() and not final.exists():
        replaced.replace(final)
    _remove_as(_hidden_name(final, "removed"), replaced)


def remove_folder(folder: Path) -> None:
    """Remove a folder in one step, so that a kill never leaves half of it under its name."""
    _remove_as(_hidden_name(folder, "removed"), folder)


def _remove_as(removed: Path, folder: Path) -> None:
    shutil.rmtree(removed, ignore_errors=True)
    with suppress(FileNotFoundError):
        folder.replace(removed)
    shutil.rmtree(removed, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; False if the system or the file system cannot."""
    import ctypes

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    working_folder, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    names = (working_folder, os.fsencode(first), working_folder, os.fsencode(second))
    return rename is not None and rename(*names, exchange) == 0


def empty_folder(folder: Path, keep: Iterable[str] = ()) -> None:
    """Remove the content of `folder` except entries with these names."""
    for path in folder.iterdir():
        if path.name in keep:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
