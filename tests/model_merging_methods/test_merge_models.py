"""Merged model folders: exact, the same however they are made, and loaded by transformers."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from merges import DARE, MERGES, ROLES, request
from safetensors.torch import load_file, save_file
from small_models import save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_merging_methods.merge_models import MergeWork, merge_models
from model_merging_methods.merge_record import request_from_record
from model_merging_methods.merge_request import Mask, MergeParameters, MergeRequest, Mixup
from utils.errors import UserError
from utils.whole_files import whole_folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A base in float16 and three fine-tunes, of which `math` has an added token."""
    root = tmp_path_factory.mktemp("models")
    base = save_model(root / "base", seed=0, dtype=torch.float16)
    for seed, role in enumerate(ROLES, start=1):
        added = ("[PAD]",) if role == "math" else ()
        save_model(root / role, seed, base=base, dtype=torch.float16, added_tokens=added)
    return root


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


@pytest.mark.parametrize("parameters", MERGES.values(), ids=MERGES)
def test_same_bytes_for_any_number_of_threads_and_any_block_size(models, tmp_path, parameters):
    reference = None
    for threads, block_size in [(1, 1 << 17), (2, 1 << 17), (1, 100), (2, 333), (3, 7919)]:
        target = tmp_path / f"{threads}_{block_size}"
        work = MergeWork(threads=threads, block_size=block_size)
        merge_models(request(models, parameters), {"math": target}, work=work)
        reference = reference or weights(target)
        assert weights(target) == reference


def test_another_seed_gives_another_mask(models, tmp_path):
    for seed in (0, 1):
        parameters = MergeParameters("task_arithmetic", mask=DARE, seed=seed)
        merge_models(request(models, parameters), {"code": tmp_path / str(seed)})
    assert weights(tmp_path / "0") != weights(tmp_path / "1")


def test_a_model_s_mask_does_not_depend_on_the_models_merged_with_it(models, tmp_path):
    """θ0 + masked δ of math is what is left when the other model is the base itself."""
    parameters = MergeParameters("task_arithmetic", mask=Mask(0.5), dtype="float32")
    kept = []
    for partner in ("instruct", "code"):
        role_folders = {partner: models / "base", "math": models / "math"}
        pair = {role: role_folders[role] for role in ROLES if role in role_folders}
        target = tmp_path / partner
        merge_models(MergeRequest(models / "base", pair, parameters), {"math": target})
        kept.append(weights(target))
    assert kept[0] == kept[1]


def test_sharded_inputs_and_outputs_hold_the_same_values(models, tmp_path):
    whole = request(models, MERGES["TIES"])
    merge_models(whole, {"code": tmp_path / "whole"})
    for name in ("base", *ROLES):
        model = AutoModelForCausalLM.from_pretrained(models / name, dtype=torch.float16)
        model.save_pretrained(tmp_path / "sharded" / name, max_shard_size="10KB")
        AutoTokenizer.from_pretrained(models / name).save_pretrained(tmp_path / "sharded" / name)
    assert len(list((tmp_path / "sharded" / "math").glob("*.safetensors"))) > 1
    sharded = request(tmp_path / "sharded", MERGES["TIES"])
    merge_models(sharded, {"code": tmp_path / "out"}, work=MergeWork(largest_shard=10_000))

    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 1
    values = {name: tensor for file in files for name, tensor in load_file(file).items()}
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    assert values.keys() == expected.keys()
    assert all(torch.equal(values[name], expected[name]) for name in values)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == expected.keys()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_transformers_loads_what_was_saved_in_the_dtype_asked_for(models, tmp_path, dtype):
    merge_models(request(models, MergeParameters("task_arithmetic", dtype=dtype)), {"math": tmp_path / "merged"})
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto", output_loading_info=True)
    assert model.dtype == getattr(torch, dtype or "float16")
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens = AutoTokenizer.from_pretrained(tmp_path / "merged")("what is two and two", return_tensors="pt")
    model.float().generate(**tokens, max_new_tokens=3, pad_token_id=0)


def test_tied_embeddings_stay_tied(tmp_path):
    base = save_model(tmp_path / "base", seed=0, tied=True)
    for seed, role in enumerate(("math", "code"), start=1):
        save_model(tmp_path / role, seed, base=base, tied=True)
    merge_models(request(tmp_path, MERGES["task arithmetic"], ("math", "code")), {"math": tmp_path / "merged"})
    assert "lm_head.weight" not in load_file(tmp_path / "merged" / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_weights_take_the_disk_once_and_each_task_has_its_tokenizer(models, tmp_path):
    targets = {role: tmp_path / role for role in ROLES}
    merge_models(request(models, MERGES["average"]), targets)
    assert len({os.stat(target / "model.safetensors").st_ino for target in targets.values()}) == 1
    assert "[PAD]" in AutoTokenizer.from_pretrained(targets["math"]).get_vocab()
    assert "[PAD]" not in AutoTokenizer.from_pretrained(targets["instruct"]).get_vocab()
    assert all((target / "README.md").exists() for target in targets.values())


def test_a_record_makes_the_same_folder_again(models, tmp_path):
    parameters = MergeParameters("ties_merging", mask=DARE, mixup=Mixup((0.1, 0.2, 0.7), alpha=0.5), seed=5)
    first, again = tmp_path / "first", tmp_path / "again"
    merge_models(request(models, parameters), {"code": first})
    record = first / "merge_record.json"
    merge_models(request_from_record(record, {}), {"code": again}, made_from=record)
    assert {path.name for path in first.iterdir()} == {path.name for path in again.iterdir()}
    for path in first.iterdir():
        if path != record:
            assert path.read_bytes() == (again / path.name).read_bytes()


def test_a_record_refuses_other_inputs_and_leaves_nothing(models, tmp_path):
    merge_models(request(models, MERGES["average"]), {"code": tmp_path / "first"})
    record = tmp_path / "first" / "merge_record.json"
    moved = request_from_record(record, {"math": models / "code"})
    with pytest.raises(UserError, match=r"math model's .* is not the file"):
        merge_models(moved, {"code": tmp_path / "again"}, made_from=record)
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_a_finished_merge_is_not_redone_unless_asked(models, tmp_path):
    target = tmp_path / "merged"
    merge_models(request(models, MERGES["average"]), {"code": target})
    before = os.stat(target).st_ino
    merge_models(request(models, MERGES["average"]), {"code": target})
    assert os.stat(target).st_ino == before
    merge_models(request(models, MERGES["average"]), {"code": target}, overwrite=True)
    assert os.stat(target).st_ino != before


def test_another_merge_s_folder_is_never_replaced_unasked(models, tmp_path):
    target = tmp_path / "merged"
    merge_models(request(models, MERGES["average"]), {"code": target})
    before = weights(target)
    with pytest.raises(UserError, match=r"another run.*--overwrite"):
        merge_models(request(models, MERGES["TIES"]), {"code": target})
    assert weights(target) == before
    merge_models(request(models, MERGES["TIES"]), {"code": target}, overwrite=True)
    assert weights(target) != before
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_a_fine_tune_that_changed_since_is_another_merge(models, tmp_path):
    for name in ("base", "math", "code"):
        subprocess.run(["cp", "-r", models / name, tmp_path / name], check=True)
    target = tmp_path / "merged"
    asked = request(tmp_path, MERGES["average"], ("math", "code"))
    merge_models(asked, {"code": target})
    (tmp_path / "math" / "model.safetensors").touch()
    merge_models(asked, {"code": target})  # only the time changed
    save_model(tmp_path / "math", 9, base=tmp_path / "base", dtype=torch.float16, added_tokens=("[PAD]",))
    with pytest.raises(UserError, match="another run"):
        merge_models(asked, {"code": target})


def test_a_folder_whose_weights_were_damaged_is_not_taken_for_the_merge(models, tmp_path):
    targets = {role: tmp_path / role for role in ("math", "code")}
    merge_models(request(models, MERGES["average"]), targets)
    (tmp_path / "math" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="--overwrite"):
        merge_models(request(models, MERGES["average"]), targets)


def test_an_average_depends_on_the_base_s_dtype_and_notices_another(models, tmp_path):
    for name in ("base", "math", "code"):
        shutil.copytree(models / name, tmp_path / name)
    asked = request(tmp_path, MERGES["average"], ("math", "code"))
    merge_models(asked, {"code": tmp_path / "merged"})
    base = load_file(tmp_path / "base" / "model.safetensors")
    save_file({name: value.bfloat16() for name, value in base.items()}, tmp_path / "base" / "model.safetensors")
    with pytest.raises(UserError, match="another run"):
        merge_models(asked, {"code": tmp_path / "merged"})


def test_a_base_without_a_tokenizer_is_merged_by_position(models, tmp_path):
    shutil.copytree(models / "base", tmp_path / "base")
    for path in (tmp_path / "base").glob("token*"):
        path.unlink()
    folders = {role: models / role for role in ("instruct", "code")}
    for name, base in (("with", models / "base"), ("without", tmp_path / "base")):
        merge_models(MergeRequest(base, folders, MERGES["task arithmetic"]), {"code": tmp_path / name})
    assert weights(tmp_path / "with") == weights(tmp_path / "without")


def test_old_rotary_buffers_in_an_index_of_shards_are_passed_over(models, tmp_path):
    """Llama-2's own checkpoints list them; fine-tunes do not."""
    shutil.copytree(models / "base", tmp_path / "base")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "model.safetensors").unlink()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, tmp_path / "base" / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (tmp_path / "base" / "model.safetensors.index.json").write_text(json.dumps(index))
    folders = {role: models / role for role in ROLES}
    merge_models(MergeRequest(tmp_path / "base", folders, MERGES["average"]), {"code": tmp_path / "merged"})
    assert load_file(tmp_path / "merged" / "model.safetensors").keys() == tensors.keys() - {
        "model.layers.0.self_attn.rotary_emb.inv_freq"
    }


def test_the_share_dropped_is_the_drop_rate_in_every_tensor(tmp_path):
    """With a base of zeros and a partner equal to it, what is left of task arithmetic is the masked model."""
    save_model(tmp_path / "base", seed=0, hidden_size=64)
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    for name, value in (("math", 1.0), ("code", 0.0), ("base", 0.0)):
        if name != "base":
            shutil.copytree(tmp_path / "base", tmp_path / name)
        filled = {key: torch.full_like(tensor, value) for key, tensor in tensors.items()}
        save_file(filled, tmp_path / name / "model.safetensors")
    for rate in (0.1, 0.5, 0.9):
        parameters = MergeParameters("task_arithmetic", mask=Mask(rate))
        target = tmp_path / str(rate)
        merge_models(request(tmp_path, parameters, ("math", "code")), {"math": target})
        for key, value in load_file(target / "model.safetensors").items():
            dropped = (value == 0).float().mean().item()
            assert abs(dropped - rate) <= 4 * math.sqrt(rate * (1 - rate) / value.numel()), key


# Runs a merge that kills itself with SIGKILL at the n-th of its steps: blocks, links, moves into place.
KILLED = """
import os, pathlib, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
from model_merging_methods import merge_models
from model_merging_methods.checkpoints import checkpoint_writer
from merges import MERGES, request
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
asked = request(pathlib.Path({models!r}), MERGES[{merge!r}])
merge_models.merge_models(asked, targets, work=merge_models.MergeWork(block_size=500), overwrite={overwrite})
print(steps)
"""


def merge_and_die(models: Path, out: Path, n: int, merge: str = "DARE TIES", overwrite: bool = False):
    here = Path(__file__)
    script = KILLED.format(
        root=str(here.parents[2]), tests=str(here.parent), models=str(models), out=str(out), n=n, merge=merge,
        overwrite=overwrite,
    )  # fmt: skip
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def steps(models, tmp_path_factory) -> int:
    """How many steps an undisturbed merge of two folders has; the last four are two moves, a link, a write."""
    done = merge_and_die(models, tmp_path_factory.mktemp("undisturbed"), n=-1)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("before_the_end", [None, 12, 3, 2, 1, 0])
def test_killed_at_any_moment_a_second_run_finishes(models, tmp_path, steps, before_the_end):
    out = tmp_path / "out"
    n = 1 if before_the_end is None else steps - before_the_end
    assert merge_and_die(models, out, n).returncode == -signal.SIGKILL
    for folder in out.glob("[!.]*"):
        AutoModelForCausalLM.from_pretrained(folder)  # what has its final name is whole
        assert (folder / "merge_record.json").exists()

    targets = {role: out / role for role in ("math", "code")}
    merge_models(request(models, MERGES["DARE TIES"]), targets)
    merge_models(request(models, MERGES["DARE TIES"]), {"math": tmp_path / "undisturbed"})
    assert weights(out / "math") == weights(out / "code") == weights(tmp_path / "undisturbed")
    assert {path.name for path in out.iterdir()} == {"math", "code"}


@pytest.mark.parametrize("before_the_end", [5, 4, 1, 0])
def test_killed_while_replacing_a_second_run_finishes(models, tmp_path, steps, before_the_end):
    targets = {role: tmp_path / role for role in ("math", "code")}
    merge_models(request(models, MERGES["average"]), targets)
    assert merge_and_die(models, tmp_path, steps - before_the_end, overwrite=True).returncode == -signal.SIGKILL
    merge_models(request(models, MERGES["DARE TIES"]), targets, overwrite=True)
    merge_models(request(models, MERGES["DARE TIES"]), {"math": tmp_path / "elsewhere" / "math"})
    assert weights(tmp_path / "math") == weights(tmp_path / "code") == weights(tmp_path / "elsewhere" / "math")
    assert {path.name for path in tmp_path.iterdir()} == {"math", "code", "elsewhere"}


def test_two_runs_never_write_the_same_folder(models, tmp_path):
    with whole_folder(tmp_path / "math"), pytest.raises(UserError, match="another process"):
        merge_models(request(models, MERGES["average"]), {"math": tmp_path / "math"})
    assert (tmp_path / "math").exists()
