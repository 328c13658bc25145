"""Merges in forked processes that end with a signal at a chosen moment."""

import multiprocessing
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Mapping
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from model_merging_methods import merge_folders
from model_merging_methods.merge_request import MergeRequest

PROCESSES = multiprocessing.get_context("forkserver")
# The process that is forked has imported these, which takes seconds, and has no threads.
PROCESSES.set_forkserver_preload(
    [__name__, "model_merging_methods.kernels.block_kernels", "transformers.models.auto.tokenization_auto"]
)


def forked(function: Callable, *arguments: Any) -> tuple[int, Any]:
    """The exit code of a process that calls a function, and what the function returned, if it did."""
    receiving, sending = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_send, args=(sending, function, arguments))
    process.start()
    sending.close()
    try:
        returned = receiving.recv()
    except EOFError:
        returned = None
    process.join()
    return process.exitcode, returned


def _send(sending: Connection, function: Callable, arguments: tuple) -> None:
    sending.send(function(*arguments))


def stop_before_change(target: Path, by: int, is_reached: Callable[[int], bool]) -> None:
    """Send this process a signal once, just before the first change of a merge's files for which
    `is_reached(number of earlier changes)`. A change opens a file to write it, renames it or removes it."""
    earlier = count()
    stopped = []

    def hook(event: str, arguments: tuple) -> None:
        if event not in ("open", "os.rename", "os.remove") or stopped:
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        is_inside = str(arguments[0]).startswith((f"{target.parent}/.{target.name}.", str(target)))
        if is_inside and is_reached(next(earlier)):
            stopped.append(by)
            os.kill(os.getpid(), by)

    sys.addaudithook(hook)


def merge_to_change(wanted: MergeRequest, target: Path, work: merge_folders.MergeWork, last: int) -> int:
    """Merge, killed just before this change of the files; -1: not killed. Returns the number of changes."""
    numbers = []

    def is_last(number: int) -> bool:
        numbers.append(number)
        return number == last

    stop_before_change(target, signal.SIGKILL, is_last)
    merge_folders.merge_folders(wanted, {"math": target}, work=work)
    return len(numbers)


def merge_to_step(wanted: MergeRequest, targets: Mapping[str, Path], last: int, overwrite: bool = False) -> int:
    """Merge, killed at this step: a block, a link or a move; -1: not killed. Returns the number of steps."""
    steps = count(1)

    def counted(function: Callable) -> Callable:
        def step(*arguments, **options):
            if next(steps) == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return step

    merge_folders.CheckpointWriter.write = counted(merge_folders.CheckpointWriter.write)
    os.link = counted(os.link)
    pathlib.Path.replace = counted(pathlib.Path.replace)
    merge_folders.merge_folders(wanted, targets, work=merge_folders.MergeWork(block_size=500), overwrite=overwrite)
    return next(steps) - 1
