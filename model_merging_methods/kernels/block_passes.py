"""Passes over the blocks of a merge, with several threads and read-ahead."""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass
from threading import Event, Lock, Semaphore

from utils.progress import progress_of

_BLOCKS_AHEAD = 96


@dataclass(frozen=True)
class Block:
    """Positions start … stop − 1 of the flattened parameter `name`."""

    name: str
    start: int
    stop: int


def for_every_block(
    blocks: Sequence[Block],
    new_worker: Callable[[], Callable[[Block], None]],
    threads: int,
    read_ahead: Callable[[Block], None] | None = None,
    title: str | None = None,
) -> None:
    """Call a worker with every block, in order, from `threads` threads with one worker each.

    `read_ahead` is called some blocks earlier, to start reading them from the disk. Progress is shown under `title`.
    The first error of a worker, or an interruption, ends the pass and is raised.
    """
    remaining = iter(blocks)
    lock, stop = Lock(), Event()
    may_read_ahead = Semaphore(_BLOCKS_AHEAD)

    def work() -> None:
        try:
            worker = new_worker()
            while not stop.is_set():
                with lock:
                    block = next(remaining, None)
                    if block is None:
                        return
                    if title:
                        progress.update()
                may_read_ahead.release()
                worker(block)
        except BaseException:
            stop.set()
            raise

    def read_all_ahead() -> None:
        for block in blocks:
            may_read_ahead.acquire()
            if stop.is_set():
                return
            read_ahead(block)

    shown = progress_of(title, len(blocks), "blocks", persistent=False) if title else nullcontext()
    with shown as progress, ThreadPoolExecutor(threads + 1) as pool:
        try:
            running = [pool.submit(work) for _ in range(threads)]
            if read_ahead is not None:
                running.append(pool.submit(read_all_ahead))
            done, _ = wait(running, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            stop.set()
            may_read_ahead.release()
