"""Folders that are not a model that can be run: one line with a remedy, and nothing written."""

import functools
import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForSequenceClassification, T5Config

from inference_llms.model_folder import output_places
from merge_llms_instruct_math_code import main as merge_main
from promptbench import run_attacks, sst2
from tests.commands import run_here
from tests.inference_llms.support import ROOT, run_command_here
from utils.output_places import OutputPlaces

ZOO = ROOT / "scripts" / "tiny_zoo"
LFS_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9942981696\n"
ADAPTER = {"base_model_name_or_path": "our/base", "peft_type": "LORA"}


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def rename_tensors(folder, prefix):
    tensors = load_file(folder / "model.safetensors")
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, folder / "model.safetensors")


def make_adapter(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    shutil.rmtree(folder)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(folder)


def make_classifier(folder):
    config = LlamaConfig.from_pretrained(folder)
    LlamaForSequenceClassification(config).save_pretrained(folder)


def put_inside(folder):
    shutil.copytree(folder, folder / "checkpoint-100")
    (folder / "config.json").unlink()


def remove_tokenizer(folder):
    for path in folder.glob("*token*"):
        path.unlink()


CASES = {
    "an adapter": (make_adapter, "adapter of /", "merge_and_unload()"),
    "an adapter beside a model": (
        lambda folder: (folder / "adapter_config.json").write_text(json.dumps(ADAPTER)),
        "a model and an adapter",
        "move the adapter's files",
    ),
    "a Trainer's folder": (put_inside, "holds no model itself", "checkpoint-100"),
    "no tokenizer": (remove_tokenizer, "holds no tokenizer", "copy the tokenizer's files"),
    "an empty tokenizer.model": (
        lambda folder: (remove_tokenizer(folder), (folder / "tokenizer.model").touch()),
        "holds no tokenizer",
        "copy the tokenizer's files",
    ),
    "weights not fetched": (
        lambda folder: (folder / "model.safetensors").write_text(LFS_POINTER),
        "model.safetensors is a Git LFS pointer",
        "git lfs pull",
    ),
    "a tokenizer not fetched": (
        lambda folder: (folder / "tokenizer.json").write_text(LFS_POINTER),
        "tokenizer.json is a Git LFS pointer",
        "git lfs pull",
    ),
    "a web page as the config": (
        lambda folder: (folder / "config.json").write_text("<!DOCTYPE html><title>404</title>"),
        "config.json is a web page",
        "download it again",
    ),
    "GPTQ": (
        lambda folder: edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128}),
        "requires optimum",
        "install what it names",
    ),
    "bitsandbytes": (
        lambda folder: edit_config(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "requires bitsandbytes",
        "install what it names",
    ),
    "torch.compile's names": (
        lambda folder: rename_tensors(folder, "_orig_mod."),
        "begin with _orig_mod.",
        "save the model that is inside",
    ),
    "a classifier": (make_classifier, "lacks tensor lm_head.weight, and holds 1", "as a causal language model"),
    "a model that translates": (
        lambda folder: T5Config().save_pretrained(folder),
        "T5Config",
        "choose a model that continues text",
    ),
    "code of its own": (
        lambda folder: edit_config(folder, model_type="ours", auto_map={"AutoConfig": "ours.OurConfig"}),
        "auto_map",
        "never run",
    ),
}


@pytest.mark.parametrize("command", ["inference", "attack"])
@pytest.mark.parametrize("name", CASES)
def test_a_folder_that_cannot_be_run_gets_one_line(name, command, tmp_path):
    spoil, fault, remedy = CASES[name]
    folder, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(ZOO / "classify", folder)
    spoil(folder)
    common = ["--data_dir", ZOO / "data", "--output_dir", out, "--backend", "transformers"]
    if command == "inference":
        done = run_command_here("--load_model_path", folder, "--tasks", "gsm8k", "--end_index", 1, *common)
    else:
        main = functools.partial(run_attacks.main, sst2.TASK)
        done = run_here(main, ["--model_path", folder, "--attack_method", "stresstest", "--num_samples", 1, *common])
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert str(folder) in done.stderr and fault in done.stderr and remedy in done.stderr
    assert not out.exists()


def test_tasks_of_a_merge_without_any_tokenizer_are_refused_before_the_merge(tmp_path):
    words = ["--merge_instruct", "--merge_math", "--merging_method_name", "average_merging", "--tasks", "gsm8k"]
    for role, name in (("pretrained", "base"), ("instruct", "instruct"), ("math", "math")):
        shutil.copytree(ZOO / name, tmp_path / name)
        remove_tokenizer(tmp_path / name)
        words += [f"--{role}_model", tmp_path / name]
    out = tmp_path / "out"
    done = run_here(merge_main, [*words, "--data_dir", ZOO / "data", "--output_dir", out, "--backend", "transformers"])
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"{tmp_path / 'math'} holds no tokenizer (nor does {tmp_path / 'base'})" in done.stderr
    assert not out.exists()


def test_results_of_a_download_have_the_models_name(tmp_path):
    folder = tmp_path / "models--our--model-1.5b" / "snapshots" / "0123456789abcdef"
    folder.mkdir(parents=True)
    assert output_places(folder, tmp_path) == OutputPlaces(tmp_path, "single_model", "model-1.5b")
