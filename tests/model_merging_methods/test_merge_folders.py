"""Merged model folders: the same for any threads and blocks, loaded by transformers, whole after any kill."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_merging_methods.merge_folders import merge_folders
from model_merging_methods.merge_parameters import mask_of, parameters_of
from tests.model_merging_methods.killed_merges import forked, merge_to_step
from tests.model_merging_methods.merges import MERGES, ROLES, file_bytes, merge, request
from tests.model_merging_methods.small_models import save_model, save_models
from utils.errors import UserError

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


def test_a_model_s_mask_does_not_depend_on_the_other_models(models, tmp_path):
    """If the other model is the base itself, θ0 + masked δ of math remains."""
    parameters = parameters_of("task_arithmetic", mask=mask_of(weight_mask_rate=0.5), dtype="float32")
    merge(models, tmp_path / "first", parameters, {"instruct": "base", "math": "math"}, "math")
    merge(models, tmp_path / "second", parameters, {"math": "math", "code": "base"}, "math")
    assert file_bytes(tmp_path / "first") == file_bytes(tmp_path / "second")


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_transformers_loads_and_runs_the_saved_dtype(models, tmp_path, dtype):
    merge(models, tmp_path / "merged", parameters_of("task_arithmetic", dtype=dtype), ROLES, "math")
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto", output_loading_info=True)
    assert model.dtype == getattr(torch, dtype or "float16")
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = AutoTokenizer.from_pretrained(tmp_path / "merged")("what is two and two", return_tensors="pt")
    model.float().generate(**tokens, max_new_tokens=3, pad_token_id=0)


def test_folders_share_weights_and_have_their_role_s_tokenizer(models, tmp_path):
    targets = {role: tmp_path / role for role in ROLES}
    merge_folders(request(models, MERGES["average"]), targets)
    assert len({os.stat(target / "model.safetensors").st_ino for target in targets.values()}) == 1
    assert "[PAD]" in AutoTokenizer.from_pretrained(targets["math"]).get_vocab()
    assert "[PAD]" not in AutoTokenizer.from_pretrained(targets["instruct"]).get_vocab()
    assert all((target / "README.md").exists() for target in targets.values())


def test_a_folder_is_replaced_only_by_overwrite(models, tmp_path):
    target, average = tmp_path / "merged", request(models, MERGES["average"])
    merge_folders(average, {"code": target})
    made = os.stat(target).st_ino
    merge_folders(average, {"code": target})
    assert os.stat(target).st_ino == made, "the same merge is kept"
    before = file_bytes(target)
    with pytest.raises(UserError, match=r"another run.*--overwrite"):
        merge_folders(request(models, MERGES["TIES"]), {"code": target})
    assert file_bytes(target) == before
    merge_folders(average, {"code": target}, overwrite=True)
    assert os.stat(target).st_ino != made and file_bytes(target) == before
    merge_folders(request(models, MERGES["TIES"]), {"code": target}, overwrite=True)
    assert file_bytes(target) != before
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_a_base_without_a_tokenizer_is_merged_by_position(models, tmp_path):
    root = shutil.copytree(models, tmp_path / "models")
    for path in (root / "base").glob("token*"):
        path.unlink()
    pair = ("instruct", "code")
    merge(models, tmp_path / "with", MERGES["task arithmetic"], pair)
    merge(root, tmp_path / "without", MERGES["task arithmetic"], pair)
    assert file_bytes(tmp_path / "with") == file_bytes(tmp_path / "without")


@pytest.fixture(scope="module")
def steps(models, tmp_path_factory) -> int:
    """How many steps an undisturbed merge of two folders has; the last four are two moves, a link, a write."""
    folder = tmp_path_factory.mktemp("undisturbed")
    status, number = forked(
        merge_to_step, request(models, MERGES["DARE TIES"]), {role: folder / role for role in TWO}, -1
    )
    assert status == 0
    return number


@pytest.fixture(scope="module")
def undisturbed(models, tmp_path_factory) -> dict[str, bytes]:
    target = tmp_path_factory.mktemp("undisturbed") / "merged"
    merge(models, target, MERGES["DARE TIES"], ROLES)
    return file_bytes(target)


@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.parametrize("before_the_end", ["all", "half", 5, 3, 2, 1, 0])
def test_a_second_run_finishes_after_a_kill_at_any_step(models, undisturbed, tmp_path, steps, before_the_end, replaces):
    targets = {role: tmp_path / role for role in TWO}
    if replaces:
        merge_folders(request(models, MERGES["average"]), targets)
    n = steps - {"all": steps - 1, "half": steps // 2}.get(before_the_end, before_the_end)
    status, _ = forked(merge_to_step, request(models, MERGES["DARE TIES"]), targets, n, replaces)
    assert status == -signal.SIGKILL
    for folder in tmp_path.glob("[!.]*"):
        AutoModelForCausalLM.from_pretrained(folder)  # a folder with its final name is whole
        assert (folder / "merge_record.json").exists()
    merge_folders(request(models, MERGES["DARE TIES"]), targets, overwrite=replaces)
    assert file_bytes(tmp_path / "math") == file_bytes(tmp_path / "code") == undisturbed
    assert {path.name for path in tmp_path.iterdir()} == {"math", "code"}
