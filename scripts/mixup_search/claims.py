"""Who works on what, where several processes share a search: a claim lasts while its process lives and renews it."""

import os
import socket
import time
from functools import cache
from pathlib import Path

# A claim that was not renewed for so long is void; seconds.
CLAIM_LASTS = 600


@cache
def this_process() -> str:
    """What names this process among those of all machines and times: `machine:process id:start`."""
    return f"{_this_machine()}:{os.getpid()}:{_start(os.getpid())}"


def is_void(holder: str, renewed: float) -> bool:
    """Whether a claim no longer counts: its process, on this machine, is dead; or it was last renewed too long ago
    (`renewed` in seconds since 1970)."""
    machine, process, start = holder.rsplit(":", 2)
    is_dead = machine == _this_machine() and _start(int(process)) != start
    return is_dead or time.time() - renewed > CLAIM_LASTS


@cache
def _this_machine() -> str:
    """A name that no other machine has, nor another container with process ids of its own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid').removeprefix('pid:')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _start(process: int) -> str | None:
    """When a living process started, in clock ticks; None for a dead one. Without /proc all count as living."""
    if not Path("/proc/self/stat").exists():
        return ""
    try:
        after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if after_name[0] in "ZX" else after_name[19]
