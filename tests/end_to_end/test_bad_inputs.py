"""Bad inputs through every command that takes a model: status 2, one line, nothing left behind.

One fault of each kind; the tests of the rooms have the others.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import merge_llms_instruct_math_code as main_script
import ood_robust_inference as ood_script
from inference_llms import __main__ as inference
from scripts import search_mixup
from tests.commands import run_here
from tests.model_merging_methods.merges import PAIR
from tests.model_merging_methods.small_models import (
    WEIGHTS,
    Tensors,
    change_json,
    change_tensors,
    save_model,
    save_models,
)

DATA = Path(__file__).parents[2] / "scripts" / "tiny_zoo" / "data"
SHARD = "model-00001-of-00002.safetensors"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9942981696\n"
COMMANDS = {
    "merge": main_script.main,
    "search": search_mixup.main,
    "inference": inference.main,
    "ood": ood_script.main,
}


@pytest.fixture(scope="session")
def trio(tmp_path_factory) -> Path:
    return save_models(tmp_path_factory.mktemp("trio"), PAIR)


@pytest.fixture
def models(trio, tmp_path) -> Path:
    return Path(shutil.copytree(trio, tmp_path / "models"))


def words_of(command: str, models: Path, out: Path) -> list[object]:
    """A command that works on these models."""
    common = ["--data_dir", DATA, "--output_dir", out]
    if command == "inference":
        engine = ["--backend", "transformers", "--end_index", 1]
        return ["--load_model_path", models / "math", "--tasks", "gsm8k", *common, *engine]
    if command == "ood":
        return ["--load_model_path", models / "math", *common, "--backend", "transformers", "--end_index", 1]
    words = ["--pretrained_model", models / "base", "--merging_method_name", "task_arithmetic"]
    for role in PAIR:
        words += [f"--merge_{role}", f"--{role}_model", models / role]
    if command == "merge":
        return [*words, "--merge_only", "--output_dir", out]
    searching = ["--tasks", "gsm8k", "--num_draws", 1, "--num_validation", 2, "--num_test", 2]
    return [*words, *searching, "--backend", "transformers", *common]


def assert_refused(command: str, words: list[object], out: Path, said: str) -> None:
    before = contents(out)
    done = run_here(COMMANDS[command], words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert said.lower() in done.stderr.lower()
    assert contents(out) == before


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def edit_config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "config.json", **changes)


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    def put(folder: Path) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return put


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def rewrite(change: Callable[[Tensors], Tensors]) -> Callable[[Path], None]:
    return lambda folder: change_tensors(folder, change)


def cut(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def only(name: str, content: str | bytes) -> Callable[[Path], None]:
    """The weights replaced by this one file."""

    def put(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        write(name, content)(folder)

    return put


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def adapter_without_weights(folder: Path) -> None:
    emptied(folder)
    write("adapter_config.json", json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))(folder)


def quantised(folder: Path) -> None:
    edit_config(quantization_config={"quant_method": "gptq", "bits": 4})(folder)
    module = "model.layers.0.mlp.down_proj."
    packed = {"qweight": torch.zeros(2, 16, dtype=torch.int32), "scales": torch.ones(1, 16, dtype=torch.float16)}
    packed = {module + name: value for name, value in packed.items()}
    change_tensors(folder, lambda own: {n: value for n, value in own.items() if not n.startswith(module)} | packed)


def with_nan(tensors: Tensors) -> Tensors:
    tensors["model.norm.weight"][0] = float("nan")
    return tensors


def transposed(tensors: Tensors) -> Tensors:
    name = "model.layers.0.mlp.down_proj.weight"
    return {**tensors, name: tensors[name].T}


def more_layers(folder: Path) -> None:
    edit_config(num_hidden_layers=3)(folder)
    change_tensors(folder, lambda own: {**own, **{n.replace("layers.1", "layers.2"): v for n, v in own.items()}})


def of_another_kind(folder: Path) -> None:
    edit_config(model_type=["llama"], auto_map={"AutoModel": "mine.Mine"})(folder)


INDEX = f"{WEIGHTS}.index.json"
OUTSIDE = json.dumps({"weight_map": {"lm_head.weight": "../base/model.safetensors"}})
ALL, MERGING = ("merge", "search", "inference"), ("merge", "search")
# A fault of the math model, the commands that must refuse it, a word of the message.
BROKEN_MODELS = {
    "missing folder": (shutil.rmtree, ALL, "math"),
    "empty folder": (emptied, ALL, "math"),
    "no config": (remove("config.json"), ALL, "config.json"),
    "config is not JSON": (write("config.json", "{'a': 1}"), ALL, "config.json"),
    "config of zero bytes": (write("config.json", b"\0" * 100), ALL, "config.json"),
    "config of strings": (edit_config(num_attention_heads="two", hidden_size="wide"), ALL, "math"),
    "no weights": (remove(WEIGHTS), ALL, "math"),
    "weights cut in half": (cut, ALL, "math"),
    "weights are a pointer": (write(WEIGHTS, POINTER), ALL, "git lfs pull"),
    "pickled garbage": (only("pytorch_model.bin", b"\x80\x02garbage"), ALL, ".bin"),
    "shard missing": (only(INDEX, json.dumps({"weight_map": {"lm_head.weight": SHARD}})), ALL, SHARD),
    "index leads outside": (only(INDEX, OUTSIDE), ALL, "index.json"),
    "index without a map": (only(INDEX, "{}"), ALL, "index.json"),
    "tensors missing": (rewrite(lambda own: {n: v for n, v in own.items() if "mlp" not in n}), ALL, "math"),
    "tensor transposed": (rewrite(transposed), ALL, "down_proj"),
    "NaN": (rewrite(with_nan), ALL, "nan"),
    "GPTQ": (quantised, ALL, "gptq"),
    "another activation": (edit_config(hidden_act="gelu"), MERGING, "hidden_act"),
    "another backbone": (lambda folder: save_model(shutil.rmtree(folder) or folder, 9), MERGING, "math"),
    "more layers": (more_layers, MERGING, "math"),
    "tokenizer is not JSON": (write("tokenizer.json", "{"), ALL, "tokenizer.json"),
    "tokenizer of wrong types": (write("tokenizer.json", '{"model": 3, "added_tokens": 4}'), ALL, "math"),
    "adapter without weights": (adapter_without_weights, ALL, "adapter"),
    "family of a wrong type": (of_another_kind, ("inference",), "math"),
    "not a causal model": (edit_config(model_type="vit", architectures=["ViTModel"]), ("inference",), "math"),
}


@pytest.mark.parametrize(
    ("broken", "command"), [(name, command) for name, (_, commands, _) in BROKEN_MODELS.items() for command in commands]
)
def test_a_broken_model_is_refused_in_one_line(models, tmp_path, broken, command):
    break_it, _, said = BROKEN_MODELS[broken]
    break_it(models / "math")
    assert_refused(command, words_of(command, models, tmp_path / "out"), tmp_path / "out", said)


# A command, what is added to it, a word of the message.
WRONG_OPTIONS = [
    ("merge", "--from_record /dev/null", "--from_record"),
    ("merge", "--tasks gsm8k gsm8k", "--tasks"),
    ("search", "--num_draws 0", "--num_draws"),
    ("search", "--num_validation 100000", "gsm8k"),
    ("search", "--alpha 0.9:0.1", "--alpha"),
    ("search", "--alpha wide", "--alpha"),
    ("search", "--scaling_coefficient nan", "--scaling_coefficient"),
    ("search", "--rungs 2 1", "--rungs"),
    ("search", "--validation_dir nowhere", "nowhere"),
    ("search", "--tasks human_eval", "--allow_code_execution"),
    ("inference", "--end_index 0", "--end_index"),
    ("inference", "--start_index 100000 --end_index 100001", "--start_index"),
    ("inference", "--data_dir nowhere", "nowhere"),
    ("inference", "--max_tokens many", "--max_tokens"),
    ("inference", "--backend replay --replay_from nowhere", "nowhere"),
    ("inference", "--load_model_path no/such-model-anywhere", "no/such-model-anywhere"),
    ("ood", "--livebench_release yesterday", "--livebench_release"),
    ("ood", "--model_id ../outside", "--model_id"),
    ("ood", "--evaluate_task poetry", "--evaluate_task"),
]


@pytest.mark.parametrize(("command", "options", "said"), WRONG_OPTIONS)
def test_a_wrong_option_is_refused_in_one_line(models, tmp_path, command, options, said):
    words = [*words_of(command, models, tmp_path / "out"), *options.split()]
    assert_refused(command, words, tmp_path / "out", said)


# Broken data sets, records and results.
def broken_data(content: str) -> Callable[[Path], list[object]]:
    def make(root: Path) -> list[object]:
        (root / "data").mkdir()
        (root / "data" / "gsm8k_test.jsonl").write_text(content)
        return ["--data_dir", root / "data"]

    return make


def broken_results(place: str, content: str) -> Callable[[Path], list[object]]:
    def make(root: Path) -> list[object]:
        path = root / "out" / place
        path.parent.mkdir(parents=True)
        path.write_text(content)
        return []

    return make


def broken_record(content: str) -> Callable[[Path], list[object]]:
    def make(root: Path) -> list[object]:
        (root / "merge_record.json").write_text(content)
        return ["--from_record", root / "merge_record.json"]

    return make


def output_is_a_file(root: Path) -> list[object]:
    (root / "out").write_text("a file")
    return []


MERGED = "save_merge_models/instruct_math/math/task_arithmetic_scaling_coefficient_1.0"
BROKEN_FILES = [
    ("inference", broken_data(""), "gsm8k_test.jsonl"),
    ("inference", broken_data("{"), "gsm8k_test.jsonl"),
    ("inference", broken_data('{"question": 3, "answer": "#### 1"}\n'), "gsm8k_test.jsonl"),
    ("inference", broken_data('{"question": "what is 1?"}\n'), "gsm8k_test.jsonl"),
    ("inference", broken_results("save_scores/single_model/math.json", "[]"), "math.json"),
    ("inference", broken_results("save_scores/single_model/math.json", "{"), "math.json"),
    ("inference", broken_results("save_raw_generations/single_model/math/gsm8k.jsonl", "{}\n"), "gsm8k.jsonl"),
    ("merge", broken_results(f"{MERGED}/config.json", "{}"), "--overwrite"),
    ("merge", broken_results(f"{MERGED}/merge_record.json", "\0\0"), "merge_record.json"),
    ("merge", broken_results(f"{MERGED}/merge_record.json", '{"format": 2, "parameters": 1}'), "merge_record.json"),
    ("merge", output_is_a_file, "out"),
    ("search", output_is_a_file, "out"),
    ("inference", output_is_a_file, "out"),
]


@pytest.mark.parametrize(("command", "make", "said"), BROKEN_FILES)
def test_a_broken_file_is_refused_in_one_line(models, tmp_path, command, make, said):
    words = [*words_of(command, models, tmp_path / "out"), *make(tmp_path)]
    assert_refused(command, words, tmp_path / "out", said)


@pytest.mark.parametrize("content", ["", "\0", "[]", "{}", '{"format": 2, "parameters": {}, "inputs": [1]}'])
def test_a_broken_record_is_refused_in_one_line(models, tmp_path, content):
    words = ["--merge_only", "--output_dir", tmp_path / "out", *broken_record(content)(tmp_path)]
    assert_refused("merge", words, tmp_path / "out", "merge_record.json")


def test_a_run_that_fails_at_once_keeps_what_it_would_have_replaced(models, tmp_path):
    words = words_of("inference", models, tmp_path / "out")
    assert run_here(inference.main, words).returncode == 0
    rewrite(with_nan)(models / "math")
    assert_refused("inference", [*words, "--overwrite"], tmp_path / "out", "nan")
