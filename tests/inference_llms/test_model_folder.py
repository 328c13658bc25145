"""Folders whose model cannot run: one line with a remedy, and nothing written."""

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
from tests.inference_llms.support import ZOO, run_command_here
from utils.output_places import OutputPlaces

LFS_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9942981696\n"


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def edit_config(**changes):
    def edit(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return edit


def rename_tensors(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")


def make_adapter(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    shutil.rmtree(folder)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(folder)


def move_inside(folder):
    shutil.copytree(folder, folder / "checkpoint-100")
    (folder / "config.json").unlink()


def remove_tokenizer(folder):
    for path in folder.glob("*token*"):
        path.unlink()


CASES = [
    (make_adapter, "adapter of /", "merge_and_unload()"),
    (write("adapter_config.json", '{"peft_type": "LORA"}'), "a model and an adapter", "move the adapter's files"),
    (move_inside, "holds no model itself", "checkpoint-100"),
    (remove_tokenizer, "holds no tokenizer", "copy the files of the original model's tokenizer"),
    (
        lambda folder: remove_tokenizer(folder) or write("tokenizer.model", "")(folder),
        "holds no tokenizer",
        "copy the files of the original model's tokenizer",
    ),
    (write("tokenizer.json", LFS_POINTER), "tokenizer.json is a Git LFS pointer", "git lfs pull"),
    (
        edit_config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "requires bitsandbytes",
        "install that package",
    ),
    (rename_tensors, "begin with _orig_mod.", "save the inner model"),
    (
        lambda x: LlamaForSequenceClassification(LlamaConfig.from_pretrained(x)).save_pretrained(x),
        "lacks tensor lm_head.weight, and holds 1",
        "as a causal language model",
    ),
    (lambda folder: T5Config().save_pretrained(folder), "T5Config", "choose a model that continues text"),
    (edit_config(model_type="ours", auto_map={"AutoConfig": "ours.OurConfig"}), "auto_map", "never run"),
]


@pytest.mark.parametrize(
    ("command", "spoil", "fault", "remedy"),
    [("inference", *case) for case in CASES] + [("attack", *case) for case in (CASES[0], CASES[8])],
)
def test_a_folder_that_cannot_run_gets_one_line(command, spoil, fault, remedy, tmp_path):
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
    assert f"{tmp_path / 'math'} holds no tokenizer, and neither does {tmp_path / 'base'};" in done.stderr
    assert not out.exists()


def test_results_of_a_download_have_the_models_name(tmp_path):
    folder = tmp_path / "models--our--model-1.5b" / "snapshots" / "0123456789abcdef"
    folder.mkdir(parents=True)
    assert output_places(folder, tmp_path) == OutputPlaces(tmp_path, "single_model", "model-1.5b")
