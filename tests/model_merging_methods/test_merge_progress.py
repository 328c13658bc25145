"""Merges that are killed or interrupted resume with the same bytes; failing ones leave nothing."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.benchmark_checkpoints import LlamaShape, make_checkpoint
from model_merging_methods.merge_folders import MergeWork, merge_folders
from model_merging_methods.merge_parameters import MergeParameters, mask_of, parameters_of
from model_merging_methods.merge_progress import PROGRESS_FILE
from tests.model_merging_methods.killed_merges import forked, merge_to_change
from tests.model_merging_methods.merges import PAIR, TASK_ARITHMETIC, file_bytes, request

ROOT = Path(__file__).parents[2]
SHAPE = LlamaShape(layers=2, hidden=256, intermediate=704, heads=4, key_value_heads=4, vocabulary=500)
PARAMETERS = parameters_of("ties_merging", mask=mask_of(weight_mask_rate=0.3, use_weight_rescale=True))
WORK = MergeWork(threads=2, largest_shard=500_000)
KILLS = 15

COMMAND = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.model_merging_methods.killed_merges import stop_before_change
from tests.model_merging_methods.test_merge_progress import merge, whole_shards
from model_merging_methods.merge_parameters import Mask, MergeParameters
from utils.errors import run_command_line
models, target = map(Path, sys.argv[1:])
stop_before_change(target, {by:d}, lambda number: bool(whole_shards(target)))
sys.exit(run_command_line(lambda: merge(models, target, {parameters})))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for number, role in enumerate(("base", *PAIR)):
        make_checkpoint(root / role, SHAPE, number)
    return root


def merge(models: Path, target: Path, parameters: MergeParameters = PARAMETERS) -> None:
    merge_folders(request(models, parameters, PAIR), {"math": target}, work=WORK)


@pytest.fixture(scope="module")
def undisturbed(models, tmp_path_factory) -> dict[str, bytes]:
    target = tmp_path_factory.mktemp("undisturbed") / "merged"
    merge(models, target)
    return file_bytes(target)


def identity(file: Path) -> tuple[int, int]:
    """Another file in the same place would not have this."""
    return file.stat().st_ino, file.stat().st_mtime_ns


def whole_shards(target: Path) -> dict[str, tuple[int, int]]:
    """The shards that an interrupted merge has recorded as whole, with their identities."""
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        recorded = json.loads((unfinished / PROGRESS_FILE).read_text())["shards"]
    except FileNotFoundError:
        return {}
    return {file: identity(unfinished / file) for file in recorded}


def resume(models: Path, target: Path, undisturbed: dict[str, bytes]) -> int:
    """Finish an interrupted merge, which must keep its whole shards and give the same bytes. Returns their number."""
    whole = whole_shards(target)
    merge(models, target)
    assert file_bytes(target) == undisturbed
    assert {file: identity(target / file) for file in whole} == whole
    return len(whole)


def interrupt(models: Path, target: Path, by: signal.Signals, parameters: MergeParameters = PARAMETERS) -> str:
    """Start a merge, and stop it with a signal when one of its shards is whole. Returns its stderr."""
    script = COMMAND.format(root=str(ROOT), by=by, parameters=parameters)
    finished = subprocess.run([sys.executable, "-c", script, models, target], capture_output=True, text=True)
    assert whole_shards(target) and not target.exists(), finished.stderr
    return finished.stderr


def test_reruns_after_fifteen_kills_inside_the_merge_give_the_same_bytes(models, undisturbed, tmp_path):
    wanted = request(models, PARAMETERS, PAIR)
    _, changes = forked(merge_to_change, wanted, tmp_path / "whole", WORK, -1)
    kept = []
    for number in range(KILLS):
        target = tmp_path / str(number)
        status, _ = forked(merge_to_change, wanted, target, WORK, (changes - 1) * number // KILLS)
        assert status == -signal.SIGKILL and not target.exists()
        kept.append(resume(models, target, undisturbed))
        shutil.rmtree(target)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    assert kept[0] == 0 and len(set(kept)) > 5


def test_a_merge_that_a_version_with_other_statistics_began_starts_anew(models, tmp_path):
    ramplus, target = parameters_of("ramplus_tl"), tmp_path / "merged"
    interrupt(models, target, signal.SIGKILL, ramplus)
    state = target.with_name(".merged.unfinished") / PROGRESS_FILE
    content = json.loads(state.read_text())
    del content["identity"]["statistics"]
    state.write_text(json.dumps({**content, "statistics": {"of_model": {}, "of_tensor": {}}}))
    merge(models, target, ramplus)
    merge(models, tmp_path / "undisturbed", ramplus)
    assert file_bytes(target) == file_bytes(tmp_path / "undisturbed")


@pytest.mark.parametrize("damage", ["a byte", "the end"])
def test_a_damaged_shard_is_written_again(models, undisturbed, tmp_path, damage):
    target = tmp_path / "merged"
    interrupt(models, target, signal.SIGKILL)
    whole = whole_shards(target)
    file = target.with_name(".merged.unfinished") / next(iter(whole))
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content if damage == "a byte" else content[:-10])
    merge(models, target)
    assert file_bytes(target) == undisturbed
    assert [name for name, own in whole.items() if identity(target / name) != own] == [file.name]


MAGNITUDE_MASK = parameters_of("average_merging", mask=mask_of("magnitude", weight_mask_rate=0.3))


@pytest.mark.parametrize(("interrupted", "resumed"), [(MAGNITUDE_MASK, MAGNITUDE_MASK), (PARAMETERS, TASK_ARITHMETIC)])
def test_the_next_run_has_the_bytes_of_an_undisturbed_one(models, tmp_path, interrupted, resumed):
    interrupt(models, tmp_path / "merged", signal.SIGKILL, interrupted)
    merge(models, tmp_path / "merged", resumed)
    merge(models, tmp_path / "undisturbed", resumed)
    assert file_bytes(tmp_path / "merged") == file_bytes(tmp_path / "undisturbed")
    names = [{path.name for path in (tmp_path / name).iterdir()} for name in ("merged", "undisturbed")]
    assert names[0] == names[1]


def test_changed_inputs_are_merged_from_the_beginning(models, tmp_path, caplog):
    root = shutil.copytree(models, tmp_path / "models")
    interrupt(root, tmp_path / "merged", signal.SIGKILL)
    shutil.copytree(root / "instruct", root / "math", dirs_exist_ok=True)
    merge(root, tmp_path / "merged")
    assert "held an interrupted merge of other inputs or parameters; its" in caplog.text
    merge(root, tmp_path / "other")
    assert file_bytes(tmp_path / "merged") == file_bytes(tmp_path / "other")


def test_ctrl_c_gives_one_line_and_the_rerun_resumes(models, undisturbed, tmp_path):
    error = interrupt(models, tmp_path / "merged", signal.SIGINT)
    lines = [line for line in error.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1 and lines[0].startswith("interrupted; rerun the command and it resumes")
    assert resume(models, tmp_path / "merged", undisturbed)
