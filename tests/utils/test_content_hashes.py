"""Content hashes depend on content alone, and are cached."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

from utils import content_hashes
from utils.content_hashes import check_unchanged, content_hash, file_states, folder_hash, unchanged
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
LONG_AGO = 1_000_000_000


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache that takes files of any size, and of any age unless a test says otherwise."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(content_hashes, "SMALLEST_CACHED", 0)
    monkeypatch.setattr(content_hashes, "SETTLED_SECONDS", -3600.0)
    return content_hashes.cache_file()


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(tensors(), path)
    return path


def tensors() -> dict[str, numpy.ndarray]:
    values = numpy.arange(3_000_000, dtype=numpy.float16)
    return {"a": values.reshape(3000, 1000), "norm": values[:3].copy(), "empty": values[:0]}


def is_read(path: Path, monkeypatch) -> bool:
    """Whether the next hash reads the file's values."""
    opened = []
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *arguments: opened.append(path) or real(*arguments))
    content_hash(path)
    monkeypatch.setattr(os, "preadv", real)
    return bool(opened)


def one_value(path: Path) -> None:
    changed = tensors()
    changed["norm"][1] = 7
    save_file(changed, path)


def shape(path: Path) -> None:
    save_file({**tensors(), "a": tensors()["a"].reshape(1000, 3000)}, path)


def name(path: Path) -> None:
    save_file({f"{name}_": values for name, values in tensors().items()}, path)


def dtype(path: Path) -> None:
    save_file({**tensors(), "a": tensors()["a"].view(numpy.int16)}, path)


def last_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"\1")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("change", [one_value, shape, name, dtype, last_byte, cut, longer])
def test_another_content_has_another_hash_at_any_time(weights, change):
    os.utime(weights, (LONG_AGO, LONG_AGO))
    before = content_hash(weights)
    change(weights)
    os.utime(weights, (LONG_AGO, LONG_AGO))
    assert content_hash(weights) != before


def test_a_hash_depends_on_neither_metadata_nor_place(weights, tmp_path):
    other = tmp_path / "other.safetensors"
    save_file(tensors(), other, metadata={"format": "pt"})
    assert content_hash(other) == content_hash(weights)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    before = folder_hash(tmp_path / "a")
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    assert folder_hash(tmp_path / "a") != before


def test_a_file_is_read_once_and_again_after_any_change(weights, monkeypatch):
    assert is_read(weights, monkeypatch)
    assert not is_read(weights, monkeypatch)
    moved = weights.rename(weights.with_name("moved.safetensors"))
    content_hash(moved)
    assert not is_read(moved, monkeypatch)
    os.utime(moved, (LONG_AGO, LONG_AGO))
    assert is_read(moved, monkeypatch)


def test_a_file_that_changed_just_now_is_not_cached(weights, monkeypatch):
    monkeypatch.setattr(content_hashes, "SETTLED_SECONDS", 2.0)
    content_hash(weights)
    assert is_read(weights, monkeypatch)
    settled = time.time() + 3
    monkeypatch.setattr(content_hashes.time, "time", lambda: settled)
    content_hash(weights)
    assert not is_read(weights, monkeypatch)


def test_a_small_file_is_not_cached(weights, cache, monkeypatch):
    monkeypatch.setattr(content_hashes, "SMALLEST_CACHED", 1 << 30)
    content_hash(weights)
    assert not cache.exists()


def unwritable(cache: Path) -> None:
    cache.parent.parent.write_text("a file in the folder's place")


def no_database(cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("text" * 1000)


def a_folder(cache: Path) -> None:
    cache.mkdir(parents=True)


@pytest.mark.parametrize("spoil", [unwritable, no_database, a_folder])
def test_an_unusable_cache_is_ignored(weights, cache, monkeypatch, spoil):
    spoil(cache)
    before = content_hash(weights)
    assert is_read(weights, monkeypatch) and content_hash(weights) == before


def test_the_cache_stays_small(weights, cache, monkeypatch):
    monkeypatch.setattr(content_hashes, "_LARGEST_CACHE", 1000)
    state = content_hashes.file_state(weights)
    for number in range(50):
        content_hashes.keep(state._replace(inode=number), "bytes", "x" * 100, time.time())
    assert content_hashes.recall(state._replace(inode=49), "bytes") == "x" * 100
    kept = [content_hashes.recall(state._replace(inode=number), "bytes") for number in range(50)]
    assert 0 < sum(value is not None for value in kept) <= 10


def test_many_processes_share_one_cache(weights, tmp_path):
    program = (
        "import sys; from pathlib import Path; from utils import content_hashes; from utils.content_hashes import *; "
        "content_hashes.SMALLEST_CACHED, content_hashes.SETTLED_SECONDS = 0, -9e9; "
        "print([content_hash(Path(path)) for path in sys.argv[1:]])"
    )
    paths = [tmp_path / f"{number}.safetensors" for number in range(8)]
    for number, path in enumerate(paths):
        save_file({"a": numpy.full(1000, number)}, path)
    expected = str([content_hash(path) for path in paths])
    processes = [
        subprocess.Popen([sys.executable, "-c", program, *map(str, paths)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [process.communicate()[0].strip() for process in processes] == [expected] * 4


@pytest.mark.parametrize("change", [last_byte, cut, Path.unlink])
def test_a_file_that_changes_while_it_is_read_is_named(weights, change):
    with pytest.raises(UserError, match=rf"{weights}: was changed while it was being read"), unchanged([weights]):
        change(weights)


def test_a_file_that_appears_while_others_are_read_is_named(tmp_path):
    before = file_states(tmp_path.glob("*.json"))
    (tmp_path / "new.json").write_text(json.dumps({}))
    with pytest.raises(UserError, match=r"new\.json: was changed"):
        check_unchanged(before, file_states(tmp_path.glob("*.json")))
