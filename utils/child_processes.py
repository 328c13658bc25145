"""Commands run as child processes: they end when this process ends, and Ctrl-C reaches them once."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from utils.interrupts import PARENT

_running: set[subprocess.Popen] = set()


@contextmanager
def child_process(words: Sequence[str], environment: Mapping[str, str], **options: Any) -> Iterator[subprocess.Popen]:
    """Start one of the project's commands, in a separate session; waits for it when the block ends.

    A Ctrl-C in the terminal does not reach it, so that `interrupt_children` is the only one it gets.
    """
    environment = {**environment, PARENT: str(os.getpid())}
    with subprocess.Popen(words, env=environment, start_new_session=True, **options) as process:
        _running.add(process)
        try:
            yield process
        finally:
            _running.discard(process)


def interrupt_children() -> None:
    """Send Ctrl-C to all children that still run."""
    for process in list(_running):
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
