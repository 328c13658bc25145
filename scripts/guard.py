"""A process for programs that nobody has read: without network, with limits on memory, processes, files and time."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from utils.errors import UserError

# Of each process: its address space, so that a program that wants more fails alone.
MEMORY_BYTES = 4 << 30
# Of evaluators that import torch: the libraries of a CUDA build alone map several GiB that are never touched.
TORCH_MEMORY_BYTES = 32 << 30
# Of all together, looked at twice a second: whoever goes beyond ends them all.
TOTAL_MEMORY_BYTES = 8 << 30
PROCESSES = 512
SECONDS_BETWEEN_LOOKS = 0.5
FILE_BYTES = 1 << 30
KEPT_OUTPUT_BYTES = 1 << 16
# No keys, no tokens: programs see the environment.
_KEPT_VARIABLES = ("PATH", "LANG", "HOME", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE")
# No GPU either: torch would map all of its memory.
_SET_VARIABLES = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def guarded_words(words: Sequence[str], memory_bytes: int = MEMORY_BYTES) -> list[str]:
    """The command that runs `words` in network and process namespaces of its own, each process under limits on its
    memory and files.

    Raises UserError where the machine does not allow that."""
    for tool in ("unshare", "prlimit"):
        if shutil.which(tool) is None:
            raise UserError(f"{tool} (of util-linux) is not here, so programs cannot be kept from the network")
    guard = ["unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child"]
    tried = subprocess.run([*guard, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        raise UserError(f"this machine does not let a process be cut off from the network ({tried.stderr.strip()})")
    return [*guard, "prlimit", f"--as={memory_bytes}", f"--fsize={FILE_BYTES}", "--core=0", *words]


def run_guarded(
    words: Sequence[str], seconds: float, folder: Path | None = None, memory_bytes: int = MEMORY_BYTES
) -> str:
    """Run `words` so, for `seconds` at most and with all its processes within the limits on memory and number, in
    `folder`; returns the end of what it printed.

    Raises UserError where it fails, takes longer or goes beyond a limit; nothing of it runs on then."""
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ} | _SET_VARIABLES
    name = program_name(words)
    # Files, since the limit on files holds for them: a pipe would be read into this process without end.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            guarded_words(words, memory_bytes),
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
        try:
            _wait(process, name, seconds)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode:
            lines = [line for line in _end_of(errors).splitlines() if line.strip()]
            raise UserError(f"{name} failed: {lines[-1] if lines else f'status {process.returncode}'}")
        return _end_of(output)


def _wait(process: subprocess.Popen, name: str, seconds: float) -> None:
    ends = time.monotonic() + seconds
    while True:
        left = ends - time.monotonic()
        try:
            process.wait(timeout=min(SECONDS_BETWEEN_LOOKS, max(left, 0)))
            return
        except subprocess.TimeoutExpired:
            if left <= SECONDS_BETWEEN_LOOKS:
                raise UserError(f"{name} took longer than {seconds:.0f} s and was ended") from None
            _check_limits(process.pid, name)


def _end_of(file: BinaryIO) -> str:
    file.seek(max(0, file.seek(0, os.SEEK_END) - KEPT_OUTPUT_BYTES))
    return file.read().decode(errors="replace")


def program_name(words: Sequence[str]) -> str:
    """What a command is called in messages: the script's name where it begins with the interpreter."""
    first = Path(words[0]).name
    return Path(words[1]).name if first == Path(sys.executable).name else first


def _check_limits(process: int, name: str) -> None:
    """Raise UserError where a process and its descendants are too many, or hold too much memory together."""
    processes = _with_descendants(process)
    if len(processes) > PROCESSES:
        raise UserError(f"{name} started {len(processes)} processes (the limit is {PROCESSES}) and was ended")
    held = sum(map(_memory_held, processes))
    if held > TOTAL_MEMORY_BYTES:
        told = f"{held / 2**30:.1f} GiB together (the limit is {TOTAL_MEMORY_BYTES / 2**30:.0f})"
        raise UserError(f"{name}: its processes held {told} and were ended")


def _with_descendants(process: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # "1234 (name) S 1 ...", and the name may hold anything.
            parent = int((folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended
        children.setdefault(parent, []).append(int(folder.name))
    found = [process]
    for parent in found:
        found += children.get(parent, [])
    return found


def _memory_held(process: int) -> int:
    """Bytes of a process's memory, pages that several share counted in parts."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return 0  # it has ended
    return sum(1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
