"""Log of a run, on the screen and in a file."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from logging.handlers import MemoryHandler
from pathlib import Path

_CHATTY = ("httpx", "httpx2", "datasets", "filelock", "fsspec", "urllib3")


@contextmanager
def logged_run() -> Iterator[Callable[[Path], None]]:
    """Print log lines to stdout without times (stderr is for errors and progress bars) while the block runs.

    Yields a function that writes the lines so far, with times, to a file, and all later ones as they come. Before that
    call they stay in memory, so a run that fails its checks leaves no file.
    """
    screen = logging.StreamHandler(sys.stdout)
    screen.setFormatter(logging.Formatter("%(message)s"))
    held = MemoryHandler(capacity=sys.maxsize, flushLevel=sys.maxsize, flushOnClose=False)
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    logging.raiseExceptions = False  # a closed screen (`| head`) must not print tracebacks
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for handler in (screen, held):
        root.addHandler(handler)

    def keep(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(path, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        held.setTarget(file)
        held.capacity = 1
        held.flush()

    try:
        yield keep
    finally:
        for handler in (screen, held, held.target):
            if handler is not None:
                root.removeHandler(handler)
                handler.close()


def log_time() -> str:
    """The current time for the name of a log: sortable, and unique to the microsecond."""
    return datetime.now().strftime("%Y-%m-%d_%H-%M-%S.%f")
