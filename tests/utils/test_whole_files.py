"""Files and folders are complete or absent after any kill, and one process at a time holds a name."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from utils import whole_files
from utils.whole_files import Busy, finish_replacing, locked, remove_folder, whole_folder, write_json, write_whole


def forked(work: Callable[[], None]) -> int:
    """Start `work` in a separate process; returns its id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return child


def status_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def make(folder: Path, content: str) -> Path:
    folder.mkdir()
    for name in ("config.json", "weights"):
        (folder / name).write_text(content)
    return folder


def content(folder: Path) -> set[str]:
    """The words in the files of a complete folder."""
    assert {path.name for path in folder.iterdir()} == {"config.json", "weights"}
    return {path.read_text() for path in folder.iterdir()}


def die_before(step: int, monkeypatch) -> None:
    """Kill this process before the n-th change of a name."""
    done = 0

    def counted(function):
        def change(*arguments, **options):
            nonlocal done
            done += 1
            if done == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return change

    for owner, name in ((Path, "replace"), (Path, "unlink"), (shutil, "rmtree"), (whole_files, "_exchange")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))


@pytest.mark.parametrize("has_exchange", [True, False])
def test_a_kill_while_replacing_leaves_the_old_or_the_new_folder(tmp_path, monkeypatch, has_exchange):
    if not has_exchange:  # as on NFS
        monkeypatch.setattr(whole_files, "_exchange", lambda *_: False)

    def replace(final: Path, step: int) -> None:
        die_before(step, monkeypatch)
        with whole_folder(final, replace=True) as folder:
            for name in ("config.json", "weights"):
                (folder / name).write_text("new")

    found = []
    for step in range(1, 30):
        final = make(tmp_path / str(step), "old")
        status = status_of(forked(lambda final=final, step=step: replace(final, step)))
        with locked(final):  # as the next command does
            finish_replacing(final)
        found.append(content(final))
        shutil.rmtree(final.with_name(f".{final.name}.unfinished"), ignore_errors=True)
        assert [path.name for path in tmp_path.iterdir()] == [final.name]
        shutil.rmtree(final)
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert len(found) > 6 and found[0] == {"old"} and found[-1] == {"new"}
    assert found == sorted(found, key=lambda words: words == {"new"})


def test_a_kill_while_removing_never_leaves_half_a_folder(tmp_path, monkeypatch):
    def remove(step: int) -> None:
        die_before(step, monkeypatch)
        remove_folder(tmp_path / "model")

    for step in range(1, 5):
        make(tmp_path / "model", "old")
        status_of(forked(lambda step=step: remove(step)))
        if (tmp_path / "model").exists():
            assert content(tmp_path / "model") == {"old"}
            shutil.rmtree(tmp_path / "model")
        finish_replacing(tmp_path / "model")
        assert list(tmp_path.iterdir()) == []


def test_one_process_holds_a_name_until_it_ends(tmp_path):
    path = tmp_path / "scores.json"
    lock = tmp_path / ".scores.json.lock"

    def hold() -> None:
        with locked(path):
            time.sleep(60)

    child = forked(hold)
    while not (lock.is_file() and lock.stat().st_size):
        time.sleep(0.001)
    with pytest.raises(Busy, match=rf"{path}: another process \({child} on .*\) is at work there"), locked(path):
        pass
    os.kill(child, signal.SIGKILL)
    status_of(child)
    with locked(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_read_modify_write_under_a_lock_loses_nothing(tmp_path):
    path = tmp_path / "scores.json"

    def add(name: str) -> None:
        for number in range(20):
            with locked(path, blocking=True):
                known = json.loads(path.read_text()) if path.exists() else {}
                write_json(path, {**known, f"{name}{number}": 1})

    children = [forked(lambda name=name: add(name)) for name in "abc"]
    assert [status_of(child) for child in children] == [0, 0, 0]
    assert len(json.loads(path.read_text())) == 60
    assert [file.name for file in tmp_path.iterdir()] == ["scores.json"]


def test_two_writers_of_one_file_never_mix_their_text(tmp_path):
    path = tmp_path / "notes.json"

    def write(word: str) -> None:
        for _ in range(60):
            write_whole(path, word * 5000)
            assert set(path.read_text()) in ({"a"}, {"b"})

    children = [forked(lambda word=word: write(word)) for word in "ab"]
    assert [status_of(child) for child in children] == [0, 0]
    assert [file.name for file in tmp_path.iterdir()] == ["notes.json"]


def test_the_next_write_removes_leftovers_of_a_killed_writer(tmp_path):
    path = tmp_path / "notes.json"

    def die() -> None:
        with whole_files.whole_file(path):
            os.kill(os.getpid(), signal.SIGKILL)

    status_of(forked(die))
    assert len(list(tmp_path.iterdir())) == 1 and not path.exists()
    with whole_files.whole_file(path) as held:
        write_whole(path, "first")
        assert held.exists()
    write_whole(path, "text")
    assert [file.name for file in tmp_path.iterdir()] == ["notes.json"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_gives_a_warning(tmp_path, monkeypatch, capsys, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "model"), locked(tmp_path / "other"):
        write_whole(tmp_path / "file", "text")
    assert capsys.readouterr().err.count(f"warning: {tmp_path}: this file system has no locks") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def full_disk(tmp_path) -> Path:
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_reported_with_the_file_and_keeps_the_old_one(full_disk):
    path = full_disk / "scores.json"
    write_whole(path, "old")
    with pytest.raises(OSError, match="No space left") as error:
        write_whole(path, "new" * 100_000)
    assert error.value.filename == str(path)
    assert path.read_text() == "old" and [file.name for file in full_disk.iterdir()] == ["scores.json"]


def test_a_file_system_that_takes_no_files_is_an_error():
    with pytest.raises(FileNotFoundError), locked(Path("/proc/model")):
        pass
