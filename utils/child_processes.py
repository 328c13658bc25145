"""Commands run as child processes, which end when this process ends and get Ctrl-C exactly once."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from utils.interrupts import PARENT, was_interrupted

_running: set[subprocess.Popen] = set()


@contextmanager
def child_process(words: Sequence[str], environment: Mapping[str, str], **options: Any) -> Iterator[subprocess.Popen]:
    """Start one of the project's commands in a separate session, and wait for it when the block ends.

    Ctrl-C in the terminal does not reach it; only `interrupt_children` does.
    """
    environment = {**environment, PARENT: str(os.getpid())}
    with subprocess.Popen(words, env=environment, start_new_session=True, **options) as process:
        _running.add(process)
        if was_interrupted():  # meanwhile
            interrupt_children()
        try:
            yield process
        finally:
            _running.discard(process)


def interrupt_children() -> None:
    """Send Ctrl-C to all running children."""
    for process in list(_running):
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
