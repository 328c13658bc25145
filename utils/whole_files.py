"""Files and folders that appear at their final name whole, or not at all."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from utils.errors import UserError


def unfinished_name(final: Path) -> Path:
    """The hidden sibling under which `final` is made."""
    return final.with_name(f".{final.name}.unfinished")


def sync_folder(folder: Path) -> None:
    """Make the names inside `folder` durable; of a file, its content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, replacing what was there in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_name(path)
    with open(unfinished, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, replacing what was there in one step."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def whole_folder(final: Path, replace: bool = False) -> Iterator[Path]:
    """Give a hidden folder beside `final`, and move it to `final` when the block ends well.

    What is at `final` is replaced if `replace` says so. After an error inside the block nothing of this is
    left; after a kill or Ctrl-C the hidden folder stays, and the next call for the same `final` finds in it what
    was there: to go on with, or to empty.
    Raises UserError while another process makes the same folder, or where one has made it meanwhile.
    """
    unfinished = unfinished_name(final)
    made_parents = [parent for parent in unfinished.parents if not parent.exists()]
    unfinished.mkdir(parents=True, exist_ok=True)
    with locked_folder(unfinished):
        try:
            yield unfinished
            for path in (*unfinished.rglob("*"), unfinished):
                sync_folder(path)
            if final.exists() and not replace:
                raise UserError(f"{final}: another run has put something there meanwhile; type the command again")
            _put_in_place(unfinished, final)
        except Exception:
            shutil.rmtree(unfinished, ignore_errors=True)
            for parent in made_parents:
                with suppress(OSError):  # another run put something there meanwhile
                    parent.rmdir()
            raise


def remove_replaced(final: Path) -> None:
    """Remove what a kill in the moment of replacing `final` left of its former content."""
    shutil.rmtree(_replaced_name(final), ignore_errors=True)


def _replaced_name(final: Path) -> Path:
    return final.with_name(f".{final.name}.replaced")


def _put_in_place(unfinished: Path, final: Path) -> None:
    remove_replaced(final)
    if final.exists():
        final.replace(_replaced_name(final))
    unfinished.replace(final)
    sync_folder(final.parent)
    remove_replaced(final)


def empty_folder(folder: Path, keep: Iterable[str] = ()) -> None:
    """Remove what `folder` holds, but for the entries of these names."""
    for path in folder.iterdir():
        if path.name in keep:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def locked_folder(folder: Path, waits: bool = False) -> Iterator[None]:
    """Hold `folder` for this process; a kill lets go of it. Where another process holds it, raises UserError unless
    this one `waits`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        yield
    except BlockingIOError:
        raise UserError(f"{folder}: another process is at work there; wait until it has ended") from None
    finally:
        os.close(descriptor)
