"""Merges that are killed, go wrong half-way, or lose their ground: nothing is lost, nothing is left."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.benchmark_checkpoints import LlamaShape, make_checkpoint
from model_merging_methods.engine import Merge
from model_merging_methods.merge_models import MergeWork, merge_models
from model_merging_methods.merge_progress import PROGRESS_FILE
from model_merging_methods.merge_request import Mask, MergeParameters, MergeRequest
from utils.errors import UserError

ROOT = Path(__file__).parents[2]
SHAPE = LlamaShape(layers=6, hidden=512, intermediate=1408, heads=8, key_value_heads=8, vocabulary=2000)
PARAMETERS = MergeParameters("ties_merging", mask=Mask(0.3, use_weight_rescale=True))
WORK = MergeWork(threads=2, largest_shard=2_000_000)

COMMAND = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from test_interrupted_merge import WORK, asked
from model_merging_methods.merge_request import Mask, MergeParameters
from model_merging_methods.merge_models import merge_models
from utils.errors import run_command_line
print("begins", flush=True)
models, target = map(Path, sys.argv[1:])
sys.exit(run_command_line(lambda: merge_models(asked(models, {parameters}), {{"math": target}}, work=WORK)))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for number, role in enumerate(("base", "instruct", "math")):
        make_checkpoint(root / role, SHAPE, number)
    return root


def asked(models: Path, parameters: MergeParameters = PARAMETERS) -> MergeRequest:
    return MergeRequest(models / "base", {role: models / role for role in ("instruct", "math")}, parameters)


def merge(models: Path, target: Path, parameters: MergeParameters = PARAMETERS) -> None:
    merge_models(asked(models, parameters), {"math": target}, work=WORK)


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


@pytest.fixture(scope="module")
def undisturbed(models, tmp_path_factory) -> dict[str, bytes]:
    target = tmp_path_factory.mktemp("undisturbed") / "merged"
    merge(models, target)
    return weights(target)


def start(models: Path, target: Path, parameters: MergeParameters = PARAMETERS) -> subprocess.Popen:
    """The merge in a process of its own, just as it begins."""
    script = COMMAND.format(root=str(ROOT), tests=str(Path(__file__).parent), parameters=parameters)
    process = subprocess.Popen(
        [sys.executable, "-c", script, models, target], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begins\n"
    return process


def identity(file: Path) -> tuple[int, int]:
    """What another file at the same place would not share."""
    return file.stat().st_ino, file.stat().st_mtime_ns


def whole_shards(target: Path) -> dict[str, tuple[int, int]]:
    """The shards that an interrupted merge has recorded as whole, with their identities."""
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        recorded = json.loads((unfinished / PROGRESS_FILE).read_text())["shards"]
    except FileNotFoundError:
        return {}
    return {file: identity(unfinished / file) for file in recorded}


def test_after_fifteen_kills_at_random_moments_reruns_give_the_same_bytes(models, undisturbed, tmp_path):
    process = start(models, tmp_path / "whole")
    began = time.monotonic()
    assert process.wait() == 0, process.stderr.read()
    duration = time.monotonic() - began
    moments = random.Random(0)
    inside = 0
    for number in range(40):
        target = tmp_path / str(number)
        process = start(models, target)
        time.sleep(moments.uniform(0, duration))
        process.send_signal(signal.SIGKILL)
        inside += process.wait() == -signal.SIGKILL and not target.exists()
        whole = whole_shards(target)
        merge(models, target)
        assert weights(target) == undisturbed
        assert {file: identity(target / file) for file in whole} == whole
        shutil.rmtree(target)
        if inside == 15:
            break
    assert inside == 15 and [path.name for path in tmp_path.iterdir()] == ["whole"]


def interrupt(models: Path, target: Path, by: signal.Signals, parameters: MergeParameters = PARAMETERS) -> str:
    """Start a merge, and stop it with a signal when one of its shards is whole; returns what it wrote to stderr."""
    for _ in range(30):
        process = start(models, target, parameters)
        while not whole_shards(target) and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(by)
        _, error = process.communicate()
        if not target.exists():
            assert whole_shards(target)
            return error
        shutil.rmtree(target)  # it was quicker
    raise AssertionError("thirty merges ended before they could be stopped")


@pytest.fixture
def interrupted(models, tmp_path) -> Path:
    """The place of a merge that was killed with some of its shards whole."""
    interrupt(models, tmp_path / "merged", signal.SIGKILL)
    return tmp_path / "merged"


@pytest.mark.parametrize("damage", ["a byte", "the end"])
def test_a_shard_that_was_damaged_since_is_made_anew(models, undisturbed, interrupted, damage):
    whole = whole_shards(interrupted)
    file = interrupted.with_name(".merged.unfinished") / next(iter(whole))
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content if damage == "a byte" else content[:-10])
    merge(models, interrupted)
    assert weights(interrupted) == undisturbed
    assert [name for name, own in whole.items() if identity(interrupted / name) != own] == [file.name]


def test_masks_by_magnitude_fall_on_what_a_killed_merge_had_left(models, tmp_path):
    parameters = MergeParameters("average_merging", mask=Mask(0.3, mask_strategy="magnitude"))
    merge(models, tmp_path / "undisturbed", parameters)
    interrupt(models, tmp_path / "merged", signal.SIGKILL, parameters)
    merge(models, tmp_path / "merged", parameters)
    assert weights(tmp_path / "merged") == weights(tmp_path / "undisturbed")


def test_another_merge_takes_nothing_of_an_interrupted_one(models, interrupted, tmp_path):
    parameters = MergeParameters("task_arithmetic")
    merge(models, interrupted, parameters)
    merge(models, tmp_path / "other", parameters)
    assert weights(interrupted) == weights(tmp_path / "other")
    assert {path.name for path in interrupted.iterdir()} == {path.name for path in (tmp_path / "other").iterdir()}


def test_inputs_that_changed_since_are_merged_from_the_beginning(models, tmp_path):
    for role in ("base", "instruct", "math"):
        shutil.copytree(models / role, tmp_path / "in" / role)
    target = tmp_path / "merged"
    interrupt(tmp_path / "in", target, signal.SIGKILL)
    shutil.copytree(tmp_path / "in" / "instruct", tmp_path / "in" / "math", dirs_exist_ok=True)
    merge(tmp_path / "in", target)
    merge(tmp_path / "in", tmp_path / "other")
    assert weights(target) == weights(tmp_path / "other")


def test_ctrl_c_says_so_in_one_line_and_the_merge_goes_on_later(models, undisturbed, tmp_path):
    target = tmp_path / "merged"
    error = interrupt(models, target, signal.SIGINT)
    assert [line for line in error.splitlines() if not line.startswith("warning: ")] == [
        "interrupted; rerun the command and it resumes"
    ]
    whole = whole_shards(target)
    merge(models, target)
    assert whole and {file: identity(target / file) for file in whole} == whole
    assert weights(target) == undisturbed


@pytest.fixture
def small_disk(tmp_path) -> Path:
    """A file system of its own with room for a part of a merged model."""
    place = tmp_path / "disk"
    place.mkdir()
    size = SHAPE.parameters * 2 // 2
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", place], capture_output=True).returncode:
        pytest.skip("mounting a small file system takes root's rights")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_gets_a_clear_error_and_nothing_is_left(models, small_disk, monkeypatch):
    with pytest.raises(UserError, match="GB free where the merged model takes"):
        merge(models, small_disk / "merged")
    assert list(small_disk.iterdir()) == []

    inputs = {path: path.read_bytes() for path in models.rglob("*.safetensors")}
    free = shutil.disk_usage(models)._replace(free=10**12)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)  # another process takes the room meanwhile
    with pytest.raises(OSError, match="No space left on device"):
        merge(models, small_disk / "merged")
    assert list(small_disk.iterdir()) == []
    assert all(path.read_bytes() == content for path, content in inputs.items())


def test_a_file_that_changes_between_the_passes_is_told(models, tmp_path, monkeypatch):
    for role in ("base", "instruct", "math"):
        shutil.copytree(models / role, tmp_path / role)
    changed = tmp_path / "math" / "model.safetensors"
    write = Merge.write

    def change_then_write(self, *arguments) -> None:
        with open(changed, "r+b") as file:
            file.seek(-2, os.SEEK_END)
            file.write(b"\0\0")
        write(self, *arguments)

    monkeypatch.setattr(Merge, "write", change_then_write)
    with pytest.raises(UserError, match=rf"{changed}: was changed while it was being read"):
        merge(tmp_path, tmp_path / "merged")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "instruct", "math"}


def test_a_shard_that_is_cut_off_while_it_is_read_is_told(models, tmp_path, monkeypatch):
    for role in ("base", "instruct", "math"):
        shutil.copytree(models / role, tmp_path / role)
    cut = tmp_path / "base" / "model.safetensors"
    write = Merge.write

    def cut_then_write(self, *arguments) -> None:
        os.truncate(cut, cut.stat().st_size // 2)
        write(self, *arguments)

    monkeypatch.setattr(Merge, "write", cut_then_write)
    with pytest.raises(UserError, match=rf"{cut}: ends within tensor"):
        merge(tmp_path, tmp_path / "merged")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "instruct", "math"}
