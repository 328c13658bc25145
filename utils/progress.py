"""Progress of long work: a bar on a terminal, else one line per minute on stderr."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Protocol

SECONDS_BETWEEN_LINES = 60.0


class Progress(Protocol):
    def update(self, number: int = 1) -> object:
        """Add this many to those done; thread-safe."""
        ...


@contextmanager
def progress_of(title: str, total: int, unit: str, done: int = 0, persistent: bool = True) -> Iterator[Progress]:
    """Show how many of `total` are done, starting at `done`. `persistent`: keep the finished bar on the screen."""
    if not sys.stderr.isatty():
        yield _Lines(title, total, unit, done)
        return
    from tqdm import tqdm

    with tqdm(total=total, initial=done, desc=title, unit=f" {unit}", leave=persistent) as bar:
        yield bar


class _Lines:
    def __init__(self, title: str, total: int, unit: str, done: int):
        self._title, self._total, self._unit, self._done = title, total, unit, done
        self._began = self._said = time.monotonic()
        self._lock = Lock()

    def update(self, number: int = 1) -> None:
        with self._lock:
            self._done += number
            now = time.monotonic()
            if now - self._said < SECONDS_BETWEEN_LINES:
                return
            self._said = now
            minutes = (now - self._began) / 60
            print(
                f"{self._title}: {self._done} of {self._total} {self._unit} after {minutes:.0f} min",
                file=sys.stderr,
                flush=True,
            )
