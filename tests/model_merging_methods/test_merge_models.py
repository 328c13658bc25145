"""Merged model folders: exact, the same however they are made, and loaded by transformers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_models import save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_merging_methods.merge_models import merge_models
from model_merging_methods.merge_parameters import Mask, MergeParameters, Mixup
from model_merging_methods.merge_record import MergeRequest, request_from_record
from utils.errors import UserError

ROLES = ("instruct", "math", "code")
DARE = Mask(0.3, use_weight_rescale=True)
MERGES = {
    "average": MergeParameters("average_merging"),
    "average M3": MergeParameters("average_merging", mixup=Mixup((0.5, 0.2, 0.3))),
    "task arithmetic": MergeParameters("task_arithmetic", scaling_coefficient=0.7),
    "TIES": MergeParameters("ties_merging"),
    "TIES M3": MergeParameters("ties_merging", mixup=Mixup((0.5, 0.2, 0.3))),
    "DARE average": MergeParameters("average_merging", mask=DARE),
    "DARE task arithmetic M3": MergeParameters("task_arithmetic", mask=DARE, mixup=Mixup((0.5, 0.2, 0.3))),
    "DARE TIES": MergeParameters("ties_merging", mask=DARE),
    "magnitude mask TIES": MergeParameters("ties_merging", mask=Mask(0.3, mask_strategy="magnitude")),
    "random mask of weights": MergeParameters("average_merging", mask=Mask(0.3, weight_format="finetuned_weight")),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A base in float16 and three fine-tunes, of which `math` has an added token."""
    root = tmp_path_factory.mktemp("models")
    base = save_model(root / "base", seed=0, dtype=torch.float16)
    for seed, role in enumerate(ROLES, start=1):
        added = ("[PAD]",) if role == "math" else ()
        save_model(root / role, seed, base=base, dtype=torch.float16, added_tokens=added)
    return root


def request(models: Path, parameters: MergeParameters, roles=ROLES) -> MergeRequest:
    return MergeRequest(models / "base", {role: models / role for role in roles}, parameters)


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


@pytest.mark.parametrize("parameters", MERGES.values(), ids=MERGES)
def test_same_bytes_for_any_number_of_threads_and_any_block_size(models, tmp_path, parameters):
    reference = None
    for threads, block_size in [(1, 1 << 17), (2, 1 << 17), (1, 100), (2, 333), (3, 7919)]:
        target = tmp_path / f"{threads}_{block_size}"
        merge_models(request(models, parameters), {"math": target}, threads=threads, block_size=block_size)
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
    merge_models(sharded, {"code": tmp_path / "out"}, largest_shard=10_000)

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


MERGE_SLOWLY = """
import sys, time
from pathlib import Path
sys.path[:0] = [{root!r}, {tests!r}]
from model_merging_methods import merge_engine, merge_models
from test_merge_models import MERGES, request
write = merge_engine.CheckpointWriter.write
def slow_write(*arguments):
    time.sleep(0.005)
    write(*arguments)
merge_models.CheckpointWriter.write = slow_write
merge_models.merge_models(
    request(Path({models!r}), MERGES["DARE TIES"]), {{r: Path({out!r}) / r for r in ("math", "code")}}, block_size=200
)
"""


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3])
def test_killed_while_merging_a_second_run_finishes(models, tmp_path, delay):
    """SIGKILL `delay` seconds after the first byte of output: nothing half-written has its final name."""
    out = tmp_path / "out"
    script = MERGE_SLOWLY.format(
        root=str(Path(__file__).parents[2]), tests=str(Path(__file__).parent), models=str(models), out=str(out)
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    while not list(out.glob(".*.unfinished")):
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "math").exists()

    targets = {role: out / role for role in ("math", "code")}
    merge_models(request(models, MERGES["DARE TIES"]), targets)
    merge_models(request(models, MERGES["DARE TIES"]), {"math": tmp_path / "undisturbed"})
    assert weights(out / "math") == weights(tmp_path / "undisturbed")
    assert {path.name for path in out.iterdir()} == {"math", "code"}
