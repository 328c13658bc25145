"""Merged model folders: the same for any threads and blocks, loaded by transformers, whole after any kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_merging_methods.merge_models import merge_models
from model_merging_methods.merge_record import request_from_record
from model_merging_methods.merge_request import Mask, MergeParameters, Mixup
from tests.model_merging_methods.merges import DARE, MERGES, ROLES, file_bytes, merge, request
from tests.model_merging_methods.small_models import change_tensors, save_model, save_models
from utils.errors import UserError
from utils.whole_files import whole_folder

TWO = ("math", "code")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A base in float16 and three fine-tunes, of which `math` has an added token."""
    root = save_models(tmp_path_factory.mktemp("models"), ROLES, dtype=torch.float16)
    save_model(root / "math", 2, base=root / "base", dtype=torch.float16, added_tokens=("[PAD]",))
    return root


@pytest.mark.parametrize("parameters", MERGES.values(), ids=MERGES)
def test_threads_and_block_sizes_change_no_byte(models, tmp_path, parameters):
    written = []
    for threads, block_size in [(1, 1 << 17), (2, 1 << 17), (1, 100), (2, 333), (3, 7919)]:
        target = tmp_path / f"{threads}_{block_size}"
        merge(models, target, parameters, ROLES, "math", threads=threads, block_size=block_size)
        written.append(file_bytes(target))
    assert all(content == written[0] for content in written)


def test_another_seed_gives_another_mask(models, tmp_path):
    for seed in (0, 1):
        merge(models, tmp_path / str(seed), MergeParameters("task_arithmetic", mask=DARE, seed=seed), ROLES)
    assert file_bytes(tmp_path / "0") != file_bytes(tmp_path / "1")


def test_a_model_s_mask_does_not_depend_on_the_other_models(models, tmp_path):
    """If the other model is the base itself, θ0 + masked δ of math remains."""
    parameters = MergeParameters("task_arithmetic", mask=Mask(0.5), dtype="float32")
    merge(models, tmp_path / "first", parameters, {"instruct": "base", "math": "math"}, "math")
    merge(models, tmp_path / "second", parameters, {"math": "math", "code": "base"}, "math")
    assert file_bytes(tmp_path / "first") == file_bytes(tmp_path / "second")


def test_sharded_inputs_and_outputs_hold_the_same_values(models, tmp_path):
    expected = merge(models, tmp_path / "whole", MERGES["TIES"], ROLES)
    for name in ("base", *ROLES):
        model = AutoModelForCausalLM.from_pretrained(models / name, dtype=torch.float16)
        model.save_pretrained(tmp_path / "sharded" / name, max_shard_size="10KB")
        AutoTokenizer.from_pretrained(models / name).save_pretrained(tmp_path / "sharded" / name)
    assert len(list((tmp_path / "sharded" / "math").glob("*.safetensors"))) > 1
    values = merge(tmp_path / "sharded", tmp_path / "out", MERGES["TIES"], ROLES, largest_shard=10_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert values.keys() == expected.keys()
    assert all(torch.equal(values[name], expected[name]) for name in values)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == expected.keys()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_transformers_loads_and_runs_the_saved_dtype(models, tmp_path, dtype):
    merge(models, tmp_path / "merged", MergeParameters("task_arithmetic", dtype=dtype), ROLES, "math")
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto", output_loading_info=True)
    assert model.dtype == getattr(torch, dtype or "float16")
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = AutoTokenizer.from_pretrained(tmp_path / "merged")("what is two and two", return_tensors="pt")
    model.float().generate(**tokens, max_new_tokens=3, pad_token_id=0)


def test_folders_share_weights_and_have_their_role_s_tokenizer(models, tmp_path):
    targets = {role: tmp_path / role for role in ROLES}
    merge_models(request(models, MERGES["average"]), targets)
    assert len({os.stat(target / "model.safetensors").st_ino for target in targets.values()}) == 1
    assert "[PAD]" in AutoTokenizer.from_pretrained(targets["math"]).get_vocab()
    assert "[PAD]" not in AutoTokenizer.from_pretrained(targets["instruct"]).get_vocab()
    assert all((target / "README.md").exists() for target in targets.values())


def test_a_record_makes_the_same_folder_again_from_the_same_inputs_only(models, tmp_path):
    parameters = MergeParameters("ties_merging", mask=DARE, mixup=Mixup((0.1, 0.2, 0.7), alpha=0.5), seed=5)
    first, again, record = tmp_path / "first", tmp_path / "again", tmp_path / "first" / "merge_record.json"
    merge(models, first, parameters, ROLES)
    merge_models(request_from_record(record, {}), {"code": again}, made_from=record)
    assert {path.name for path in first.iterdir()} == {path.name for path in again.iterdir()}
    assert all(path == record or path.read_bytes() == (again / path.name).read_bytes() for path in first.iterdir())
    moved = request_from_record(record, {"math": models / "code"})
    with pytest.raises(UserError, match=r"math model's .* is not the file"):
        merge_models(moved, {"code": tmp_path / "other"}, made_from=record)
    assert {path.name for path in tmp_path.iterdir()} == {"first", "again"}


def test_a_folder_is_replaced_only_by_overwrite(models, tmp_path):
    target, average = tmp_path / "merged", request(models, MERGES["average"])
    merge_models(average, {"code": target})
    made = os.stat(target).st_ino
    merge_models(average, {"code": target})
    assert os.stat(target).st_ino == made, "the same merge is kept"
    before = file_bytes(target)
    with pytest.raises(UserError, match=r"another run.*--overwrite"):
        merge_models(request(models, MERGES["TIES"]), {"code": target})
    assert file_bytes(target) == before
    merge_models(average, {"code": target}, overwrite=True)
    assert os.stat(target).st_ino != made and file_bytes(target) == before
    merge_models(request(models, MERGES["TIES"]), {"code": target}, overwrite=True)
    assert file_bytes(target) != before
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def to_bfloat16(root: Path) -> None:
    change_tensors(root / "base", lambda tensors: {name: value.bfloat16() for name, value in tensors.items()})


def retrain(root: Path) -> None:
    save_model(root / "math", 9, base=root / "base", dtype=torch.float16, added_tokens=("[PAD]",))


@pytest.mark.parametrize("change", [to_bfloat16, retrain])
def test_changed_inputs_are_another_merge(models, tmp_path, change):
    root = shutil.copytree(models, tmp_path / "models")
    merge(root, tmp_path / "merged", MERGES["average"], TWO)
    (root / "math" / "model.safetensors").touch()
    merge(root, tmp_path / "merged", MERGES["average"], TWO)  # only the time changed
    change(root)
    with pytest.raises(UserError, match="another run"):
        merge(root, tmp_path / "merged", MERGES["average"], TWO)


def test_a_base_without_a_tokenizer_is_merged_by_position(models, tmp_path):
    root = shutil.copytree(models, tmp_path / "models")
    for path in (root / "base").glob("token*"):
        path.unlink()
    pair = ("instruct", "code")
    merge(models, tmp_path / "with", MERGES["task arithmetic"], pair)
    merge(root, tmp_path / "without", MERGES["task arithmetic"], pair)
    assert file_bytes(tmp_path / "with") == file_bytes(tmp_path / "without")


def test_old_rotary_buffers_in_an_index_of_shards_are_ignored(models, tmp_path):
    """Llama-2's checkpoints list them; fine-tunes do not."""
    root = shutil.copytree(models, tmp_path / "models")
    expected = load_file(root / "base" / "model.safetensors")
    (root / "base" / "model.safetensors").unlink()
    tensors = {**expected, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(tensors, root / "base" / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (root / "base" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert merge(root, tmp_path / "merged", MERGES["average"], ROLES).keys() == expected.keys()


# A merge that kills itself with SIGKILL at the n-th of its steps: blocks, links, moves.
KILLED = """
import os, pathlib, signal, sys
sys.path.insert(0, {root!r})
from model_merging_methods import merge_models
from tests.model_merging_methods.merges import MERGES, request
steps = 0
def counted(function):
    def step(*arguments, **options):
        global steps
        steps += 1
        if steps == {n}:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return step
merge_models.CheckpointWriter.write = counted(merge_models.CheckpointWriter.write)
os.link = counted(os.link)
pathlib.Path.replace = counted(pathlib.Path.replace)
targets = {{r: pathlib.Path({out!r}) / r for r in ("math", "code")}}
wanted = request(pathlib.Path({models!r}), MERGES["DARE TIES"])
merge_models.merge_models(wanted, targets, work=merge_models.MergeWork(block_size=500), overwrite={overwrite})
print(steps)
"""


def merge_and_die(models: Path, out: Path, n: int, overwrite: bool = False) -> subprocess.CompletedProcess:
    root = str(Path(__file__).parents[2])
    script = KILLED.format(root=root, models=str(models), out=str(out), n=n, overwrite=overwrite)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def steps(models, tmp_path_factory) -> int:
    """How many steps an undisturbed merge of two folders has; the last four are two moves, a link, a write."""
    done = merge_and_die(models, tmp_path_factory.mktemp("undisturbed"), n=-1)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def undisturbed(models, tmp_path_factory) -> dict[str, bytes]:
    target = tmp_path_factory.mktemp("undisturbed") / "merged"
    merge(models, target, MERGES["DARE TIES"], ROLES)
    return file_bytes(target)


@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.parametrize("before_the_end", [None, 5, 3, 2, 1, 0])
def test_a_second_run_finishes_after_a_kill_at_any_moment(
    models, undisturbed, tmp_path, steps, before_the_end, replaces
):
    targets = {role: tmp_path / role for role in TWO}
    if replaces:
        merge_models(request(models, MERGES["average"]), targets)
    n = 1 if before_the_end is None else steps - before_the_end
    assert merge_and_die(models, tmp_path, n, overwrite=replaces).returncode == -signal.SIGKILL
    for folder in tmp_path.glob("[!.]*"):
        AutoModelForCausalLM.from_pretrained(folder)  # a folder with its final name is whole
        assert (folder / "merge_record.json").exists()
    merge_models(request(models, MERGES["DARE TIES"]), targets, overwrite=replaces)
    assert file_bytes(tmp_path / "math") == file_bytes(tmp_path / "code") == undisturbed
    assert {path.name for path in tmp_path.iterdir()} == {"math", "code"}


def test_two_runs_never_write_the_same_folder(models, tmp_path):
    with whole_folder(tmp_path / "math"), pytest.raises(UserError, match="another process"):
        merge(models, tmp_path / "math", MERGES["average"], TWO)
    assert (tmp_path / "math").exists()
