"""Give the first process of a guard without bubblewrap private mounts, then run a command there.

Runs as `python -I -S private_mounts.py PLACES COMMAND...` in new mount and process namespaces that `unshare` made.
PLACES is JSON: the folders to `hide`, the `readable` and `writable` paths below them, the `folder` to run in, and the
`bytes` that the files of one private folder may use.
"""

import ctypes
import json
import os
import sys

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
PRIVATE = ("/tmp", "/dev/shm")

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC = 2, 4, 8, 4096, 16384
# The same number on every architecture. Linux 5.12 and later have it.
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, path: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    words = (source.encode(), target.encode(), kind and kind.encode(), ctypes.c_ulong(flags), data.encode())
    check(libc.mount(*words), target)


def set_read_only(target: str, is_read_only: bool, flags: int = 0) -> None:
    on, off = (MOUNT_ATTR_RDONLY, 0) if is_read_only else (0, MOUNT_ATTR_RDONLY)
    attributes = (ctypes.c_uint64 * 4)(on, off, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    number, here, flags_word = (ctypes.c_long(value) for value in (MOUNT_SETATTR, AT_FDCWD, flags))
    check(libc.syscall(number, here, target.encode(), flags_word, attributes, size), target)


def mount_tmpfs(target: str, size: int, mode: str) -> None:
    os.makedirs(target, exist_ok=True)
    mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV, f"size={size},mode={mode}")


def bind(source: int, target: str) -> None:
    """Bind an open folder or file to `target`, and create that if it is missing."""
    is_folder = os.path.isdir(f"/proc/self/fd/{source}")
    os.makedirs(target if is_folder else os.path.dirname(target), exist_ok=True)
    if not is_folder:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    mount(f"/proc/self/fd/{source}", target, None, MS_BIND | MS_REC)


def make_mounts(places: dict) -> None:
    # Opened before anything is hidden: /proc/self/fd still reaches them afterwards.
    devices = {name: os.open(f"/dev/{name}", os.O_PATH) for name in DEVICES if os.path.exists(f"/dev/{name}")}
    sources = {path: os.open(path, os.O_PATH) for path in (*places["readable"], *places["writable"])}
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    set_read_only("/", True, AT_RECURSIVE)
    mount_tmpfs("/dev", places["bytes"], "755")
    for name, source in devices.items():
        bind(source, f"/dev/{name}")
    for name, target in LINKS.items():
        os.symlink(target, f"/dev/{name}")
    mount_tmpfs("/dev/shm", places["bytes"], "1777")
    for folder in places["hide"]:
        mount_tmpfs(folder, places["bytes"], "1777" if folder in PRIVATE else "755")
    for path, source in sources.items():
        bind(source, path)
    for path in places["writable"]:
        set_read_only(path, False)
    for folder in ("/dev", *places["hide"]):
        if folder not in PRIVATE:
            set_read_only(folder, True)
    os.chdir(places["folder"])


def run(words: list[str]) -> int:
    """Run a command and return its status; reap other processes, as a namespace's first process must."""
    child = os.fork()
    if child == 0:
        os.execv(words[0], words)
    while True:
        ended, status = os.wait()
        if ended == child:
            return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


if __name__ == "__main__":
    try:
        make_mounts(json.loads(sys.argv[1]))
    except OSError as error:
        sys.exit(f"{error.filename}: {error.strerror}")
    sys.exit(run(sys.argv[2:]))
