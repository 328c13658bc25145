"""Recognise placeholder files: Git LFS pointers, and web pages saved under the name of a weight file."""

from pathlib import Path

_STAND_INS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder",
    b"<!doctype html": "is a web page, not the file itself; download it again",
    b"<html": "is a web page, not the file itself; download it again",
}


def stand_in_remedy(path: Path) -> str | None:
    """A message, with a remedy, for a placeholder; None for a real file."""
    with open(path, "rb") as file:
        beginning = file.read(64).lstrip().lower()
    return next((remedy for start, remedy in _STAND_INS.items() if beginning.startswith(start)), None)
