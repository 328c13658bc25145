"""Faults of the inputs are found before a weight is read, in one line each, with the remedy."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from merge_llms_instruct_math_code import main
from model_merging_methods.candidate_weights import CandidateMerges
from model_merging_methods.diagnose import main as diagnose
from model_merging_methods.merge_folders import merge_folders
from model_merging_methods.merge_parameters import parameters_of
from model_merging_methods.merge_record import read_record
from model_merging_methods.merge_request import MergeRequest
from model_merging_methods.preflight import check_inputs
from tests.commands import run_here
from tests.model_merging_methods import merges
from tests.model_merging_methods.merges import PAIR
from tests.model_merging_methods.small_models import WEIGHTS, change_json, change_tensors, save_model, save_models
from utils.errors import UserError
from utils.findings import Findings

Change = Callable[[Path], object]
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return save_models(tmp_path_factory.mktemp("whole"), PAIR)


@pytest.fixture
def models(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "models")


def request(root: Path, *excluded: str) -> MergeRequest:
    return merges.request(root, parameters_of("task_arithmetic", exclude_param_names_regex=excluded), PAIR)


def check(root: Path, *excluded: str) -> Findings:
    with ExitStack() as stack:
        return check_inputs(request(root, *excluded), stack)[1]


def only_error(findings: Findings) -> str:
    assert [finding.is_error for finding in findings.found] == [True], findings
    assert "\n" not in findings.found[0].text
    return findings.found[0].text


def only_warning(findings: Findings) -> str:
    assert [finding.is_error for finding in findings.found] == [False], findings
    return findings.found[0].text


def tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    return lambda folder: change_tensors(folder, change)


def float8(folder: Path) -> None:
    change_tensors(folder, lambda stored: {**stored, UP: stored[UP].to(torch.float8_e4m3fn)})


def test_searches_and_diagnoses_stop_as_merges_do(models, tmp_path):
    float8(models / "math")
    with pytest.raises(UserError, match=r"math: is quantised \(FP8"):
        CandidateMerges(models / "base", request(models).finetuned).check(request(models).parameters, False)
    names = ["--pretrained_model", models / "base", "--models", models / "instruct", models / "math"]
    done = run_here(diagnose, [*names, "--output_dir", tmp_path / "out"])
    assert done.returncode == 2 and "math: is quantised (FP8" in done.stderr
    assert not (tmp_path / "out").exists()


def pointer(name: str) -> Change:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 99\n"
    return lambda folder: (folder / name).write_text(text)


def instead_of_weights(name: str, content: bytes = b"x") -> Change:
    def write(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)

    return write


def changed_entry(**changes) -> Change:
    """Another header entry of the output head."""

    def rewrite(folder: Path) -> None:
        content = (folder / WEIGHTS).read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        header["lm_head.weight"] |= changes
        text = json.dumps(header).encode()
        (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])

    return rewrite


class RunsCode:
    def __reduce__(self):
        return (os.mkdir, ("code_was_run",))


def malicious_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({"lm_head.weight": RunsCode()}, folder / "pytorch_model.bin")


def doubled_header(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + size].rstrip()
    name = f'"{UP}":'.encode()
    entry = header[header.index(name) :]
    entry = entry[: entry.index(b"}") + 1]
    header = header[:-1] + b"," + entry + b"}"
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])


def in_shards(folder: Path, number: int = 2, without: int | None = None) -> None:
    """Shards without an index."""
    stored = sorted(load_file(folder / WEIGHTS).items())
    (folder / WEIGHTS).unlink()
    for i in range(number):
        if i != without:
            save_file(dict(stored[i::number]), folder / f"model-{i + 1:05d}-of-{number:05d}.safetensors")


def two_saves(folder: Path) -> None:
    stored = load_file(folder / WEIGHTS)
    in_shards(folder)
    for i in range(3):
        save_file(stored, folder / f"model-{i + 1:05d}-of-00003.safetensors")


def empty_mlp(folder: Path) -> None:
    change_tensors(folder, lambda stored: {n: torch.empty(0) if "mlp" in n else t for n, t in stored.items()})


def without(name: str) -> Change:
    return tensors(lambda stored: {n: t for n, t in stored.items() if n != name})


FILES = {
    "a file's end": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-100]), [WEIGHTS, "truncated"]),
    "garbage": (lambda folder: (folder / WEIGHTS).write_bytes(b"\xff" * 500), [WEIGHTS, "corrupt"]),
    "a negative shape": (changed_entry(shape=[-12, -16]), [WEIGHTS, "corrupt"]),
    "another offset": (changed_entry(data_offsets=[8, 776]), [WEIGHTS, "corrupt"]),
    "a pickle with code": (malicious_pickle, ["pytorch_model.bin", "UnpicklingError"]),
    "half a pickle": (lambda f: (old_pickle(f), os.truncate(f / "pytorch_model.bin", 5000)), ["pickled weights"]),
    "a nested config": (lambda f: (f / "config.json").write_text("[" * 100_000), ["config.json"]),
    "a broken tokenizer": (lambda f: (f / "tokenizer.json").write_text('{"version": "1.0"'), ["tokenizer.json"]),
    "a missing tensor": (without(UP), ["lacks tensors", f"1 only in base: {UP}", "--exclude"]),
    "a missing head": (without("lm_head.weight"), ["stores no output head (lm_head.weight)"]),
    "another shape": (tensors(lambda stored: {**stored, UP: torch.zeros(8, 16)}), [UP, "8 x 16", "40 x 16"]),
    "LFS pointer as weights": (pointer(WEIGHTS), [WEIGHTS, "Git LFS pointer", "git lfs pull"]),
    "LFS pointer as config": (pointer("config.json"), ["config.json", "git lfs pull"]),
    "web page as weights": (lambda f: (f / WEIGHTS).write_text("<!DOCTYPE html><p>429"), ["web page", "download"]),
    "a name twice in the header": (doubled_header, [WEIGHTS, UP, "twice"]),
    "an incomplete set of shards": (lambda f: in_shards(f, 3, without=1), ["2 of the 3 shards", "download the others"]),
    "shards of two saves": (two_saves, ["2 checkpoints and no index"]),
    "a Trainer's output": (instead_of_weights("checkpoint-500/model.safetensors"), ["checkpoint-500", "give one"]),
    "DeepSpeed": (instead_of_weights("zero_to_fp32.py"), ["DeepSpeed checkpoint", "zero_to_fp32.py"]),
    "GGUF": (instead_of_weights("model-Q4_K_M.gguf"), ["GGUF"]),
    "Meta's files": (instead_of_weights("consolidated.00.pth"), ["another program", "Hugging Face"]),
    "a file of another name": (instead_of_weights("weights_fp16.safetensors"), ["weights_fp16.safetensors", "rename"]),
    "nothing": (lambda folder: (folder / WEIGHTS).unlink(), ["no weights", "download them"]),
    "empty tensors": (empty_mlp, ["6 of 21 tensors are empty", "ZeRO-3", "zero_to_fp32.py"]),
    "codes where the base has floats": (
        tensors(lambda stored: {**stored, "model.norm.weight": torch.ones(16, dtype=torch.int64)}),
        ["model.norm.weight is int64, but", "float32"],
    ),
}


@pytest.mark.parametrize(("change", "message"), FILES.values(), ids=FILES)
def test_unusable_files_are_named_with_the_remedy(models, change, message):
    change(models / "math")
    error = only_error(check(models))
    assert str(models / "math") in error
    for part in message:
        assert part in error
    assert not Path("code_was_run").exists()


def test_a_value_that_is_not_finite_stops_the_merge(models, tmp_path):
    tensors(lambda stored: {**stored, UP: stored[UP].fill_(float("-inf"))})(models / "math")
    with pytest.raises(UserError, match=rf"math/{WEIGHTS}: tensor {UP} holds NaN or infinity"):
        merge_folders(request(models), {"math": tmp_path / "merged"})
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def old_pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / WEIGHTS).unlink()


def index_with_unstored_and_unused_names(folder: Path) -> None:
    """The index lists the second name of a matrix, which no shard has, and a buffer, as Llama 2's does."""
    stored = load_file(folder / WEIGHTS) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    (folder / WEIGHTS).unlink()
    shard = "model-00001-of-00001.safetensors"
    save_file(stored, folder / shard)
    weight_map = dict.fromkeys([*stored, "model.shared.weight"], shard)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("change", [in_shards, old_pickle, index_with_unstored_and_unused_names])
def test_weights_in_unusual_files_merge_to_the_same_values(models, tmp_path, change):
    for name in ("usual", "unusual"):
        if name == "unusual":
            change(models / "math")
        merge_folders(request(models), {"math": tmp_path / name})
    assert (tmp_path / "usual" / WEIGHTS).read_bytes() == (tmp_path / "unusual" / WEIGHTS).read_bytes()


def doubles(pattern: str) -> Change:
    return tensors(lambda stored: {n: t.double() if pattern in n else t for n, t in stored.items()})


def counter(value: int) -> Change:
    return tensors(lambda stored: {**stored, "model.steps": torch.tensor([value])})


def test_integers_that_differ_stay_the_base_s_and_are_reported(models):
    for role, value in (("base", 1), ("instruct", 1), ("math", 2)):
        counter(value)(models / role)
    warning = only_warning(check(models))
    assert warning.startswith(f"{models / 'math'}: tensor model.steps (int64) differs")


def test_a_warning_of_float64_says_how_it_is_merged(models, tmp_path):
    doubles("norm")(models / "math")
    merge_folders(request(models), {"math": tmp_path / "merged"})
    warnings = read_record(tmp_path / "merged" / "merge_record.json")["found"]["warnings"]
    assert len(warnings) == 1 and "float64; merges compute in float32" in warnings[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_an_excluded_parameter_keeps_its_bytes(models, tmp_path, dtype):
    values = (torch.arange(40 * 16).view(40, 16) / 7).to(dtype)
    tensors(lambda stored: {**stored, "model.layers.0.mlp.up_proj.bias": values})(models / "base")
    merge_folders(request(models, "bias"), {"math": tmp_path / "merged"})
    kept = load_file(tmp_path / "merged" / WEIGHTS)["model.layers.0.mlp.up_proj.bias"]
    assert kept.dtype == dtype and torch.equal(kept, values)


def test_excluded_rows_keep_their_bytes_when_the_vocabulary_grows(whole, models, tmp_path):
    save_model(models / "math", 5, added_tokens=("[PAD]",), base=models / "base")
    doubles("embed_tokens")(models / "base")
    embedding = load_file(models / "base" / WEIGHTS)["model.embed_tokens.weight"] / 3
    tensors(lambda stored: {**stored, "model.embed_tokens.weight": embedding})(models / "base")
    merge_folders(request(models, "embed_tokens"), {"math": tmp_path / "merged"})
    merged = load_file(tmp_path / "merged" / WEIGHTS)["model.embed_tokens.weight"]
    assert merged.dtype == torch.float64 and torch.equal(merged[:-1], embedding)
    torch.testing.assert_close(merged[-1], embedding.mean(dim=0), rtol=1e-6, atol=0)


def test_both_kinds_of_files_are_reported_and_safetensors_read(models):
    torch.save({}, models / "math" / "pytorch_model.bin")
    warning = only_warning(check(models))
    assert warning.startswith(f"{models / 'math'}: holds both safetensors files and pytorch_model.bin")


def test_an_adapter_of_another_base_is_reported(models):
    base = AutoModelForCausalLM.from_pretrained(models / "base")
    shutil.rmtree(models / "math")
    get_peft_model(base, LoraConfig(target_modules=["q_proj"])).save_pretrained(models / "math")
    assert not check(models).found
    change_json(models / "math" / "adapter_config.json", base_model_name_or_path="org/Mistral-7B")
    assert "made for org/Mistral-7B but is applied to base" in only_warning(check(models))


@pytest.fixture
def run_check(models, tmp_path, monkeypatch):
    """Run the main script with --check or other options, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*more: object, option: str = "--check"):
        chosen = [word for role in PAIR for word in (f"--merge_{role}", f"--{role}_model", models / role)]
        return run_here(main, [option, "--pretrained_model", models / "base", *chosen, *more])

    return run


def test_check_prints_every_finding_and_writes_nothing(models, tmp_path, run_check):
    done = run_check()
    assert (done.returncode, done.stdout, done.stderr) == (0, "no errors and no warnings\n", "")
    torch.save({}, models / "instruct" / "pytorch_model.bin")
    done = run_check("--merging_method_name", "ties_merging")
    assert done.returncode == 0 and done.stdout.startswith("warning: ") and done.stdout.count("\n") == 1
    pointer(WEIGHTS)(models / "base")
    empty_mlp(models / "math")
    done = run_check()
    lines = done.stdout.splitlines()
    assert done.returncode == 2 and [line.split(":")[0] for line in lines] == ["error", "warning", "error"]
    merged = run_check(option="--merge_only")
    assert merged.returncode == 2 and merged.stderr.count("\n") == 1 and "(1 more error; " in merged.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"models"}


def test_check_names_models_of_another_backbone(models, run_check):
    save_model(models / "other", seed=9)
    done = run_check("--math_model", models / "other")
    assert done.returncode == 2 and "error: model math: " in done.stdout
    assert run_check("--math_model", models / "other", "--allow_unrelated").returncode == 0


def test_check_of_a_record_compares_the_inputs_with_it(models, tmp_path):
    merge_folders(request(models), {"math": tmp_path / "merged"})
    record = ["--check", "--from_record", tmp_path / "merged" / "merge_record.json"]
    assert run_here(main, record).returncode == 0
    (models / "math" / "tokenizer_config.json").write_text("{}")
    done = run_here(main, record)
    assert done.returncode == 2 and "math model's tokenizer_config.json is not the file" in done.stdout
