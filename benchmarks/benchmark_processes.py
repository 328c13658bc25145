"""Measure whole processes on Linux, describe the machine, and move files in and out of the system's cache."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.machine import available_cores

_SAMPLING_SECONDS = 0.02
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Measured:
    """A process from start to end, with peaks of memory in bytes: `own_memory` is private (no mapped or cached files),
    `resident` is all. `read` and `written` are bytes requested, `from_disk` bytes read from the disk."""

    wall: float
    own_memory: int
    resident: int
    read: int
    written: int
    from_disk: int


def machine(packages: Sequence[str]) -> list[str]:
    """Lines that describe the machine and the versions of these packages."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return [
        f"{cpu}, {len(available_cores())} cores, {memory / 1e9:.0f} GB of memory",
        f"Linux {platform.release().split('-')[0]}, Python {platform.python_version()}, {versions}",
    ]


def measure(command: Sequence[object], folder: Path) -> Measured:
    """Run a command in a folder. Raises RuntimeError with its output if it fails."""
    log = folder / "benchmark.log"
    with open(log, "w", encoding="utf-8") as printed:
        started = time.perf_counter()
        process = subprocess.Popen([str(word) for word in command], cwd=folder, stdout=printed, stderr=printed)
        own_memory, transferred = 0, {"rchar": 0, "wchar": 0}
        try:
            while True:
                own_memory = max(own_memory, _own_memory(process.pid))
                transferred.update(_transferred(process.pid))
                finished, status, usage = os.wait4(process.pid, os.WNOHANG)
                if finished:
                    break
                # More often at first: a process may last no longer than a few samples.
                time.sleep(min(_SAMPLING_SECONDS, (time.perf_counter() - started) / 10))
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{log.read_text(encoding='utf-8')}")
    return Measured(
        wall,
        own_memory,
        usage.ru_maxrss * 1024,
        transferred["rchar"],
        transferred["wchar"],
        usage.ru_inblock * 512,
    )


def _own_memory(process: int) -> int:
    with contextlib.suppress(OSError):  # it has ended
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem") if name in fields)
    return 0


def _transferred(process: int) -> dict[str, int]:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{process}/io").read_text().splitlines()
        return {name: int(value) for name, value in (line.split(": ") for line in lines) if name in ("rchar", "wchar")}
    return {}


def sync_files(folder: Path) -> float:
    """Sync a folder's files to the disk; returns the seconds."""
    started = time.perf_counter()
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    return time.perf_counter() - started


def drop_from_cache(files: Sequence[Path]) -> None:
    """Make the next read of these files come from the disk; drop all caches if that is allowed."""
    os.sync()
    for path in files:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3")


def bring_into_cache(files: Sequence[Path]) -> None:
    """Read these files once."""
    buffer = bytearray(_CHUNK)
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
