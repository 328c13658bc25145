"""Files and folders that appear at their final name whole, or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


def unfinished_name(final: Path) -> Path:
    """The hidden sibling under which `final` is made."""
    return final.with_name(f".{final.name}.unfinished")


def sync_folder(folder: Path) -> None:
    """Make the names inside `folder` durable."""
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
def whole_folder(final: Path) -> Iterator[Path]:
    """Give an empty hidden folder beside `final`, and move it to `final` when the block ends well.

    What was at `final` is replaced. After an error inside the block nothing of this is left; after a kill
    the hidden folder stays, and the next call for the same `final` starts it afresh.
    """
    unfinished = unfinished_name(final)
    shutil.rmtree(unfinished, ignore_errors=True)
    made_parents = [parent for parent in unfinished.parents if not parent.exists()]
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        for path in unfinished.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        sync_folder(unfinished)
        _put_in_place(unfinished, final)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        for parent in made_parents:
            with suppress(OSError):  # another run put something there meanwhile
                parent.rmdir()
        raise


def _put_in_place(unfinished: Path, final: Path) -> None:
    replaced = final.with_name(f".{final.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.replace(replaced)
    unfinished.replace(final)
    sync_folder(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)
