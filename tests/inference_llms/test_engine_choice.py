"""Which engine a machine gets, and what it refuses before any long work."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from inference_llms.engines import engine as engine_room
from inference_llms.engines.engine import (
    Sampling,
    check_engine_request,
    dtype_in_transformers,
    open_engine,
    resolve_backend,
    widest_split,
)
from inference_llms.engines.model_loading import check_weights, load_config
from inference_llms.engines.transformers import TransformersEngine
from inference_llms.engines.vllm import VllmEngine
from tests.inference_llms.tiny_llama import PROMPTS, write_tiny_llama
from utils.cores import available_cores
from utils.errors import UserError

ROOT = Path(__file__).parents[2]
HAS_GPU = torch.cuda.device_count() > 0
HAS_VLLM = importlib.util.find_spec("vllm") is not None
no_gpu = pytest.mark.skipif(HAS_GPU, reason="there is a GPU here")


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_auto_is_vllm_only_with_a_gpu_and_vllm():
    assert resolve_backend("auto") == ("vllm" if HAS_GPU and HAS_VLLM else "transformers")
    assert resolve_backend("vllm") == "vllm"
    assert resolve_backend("transformers") == "transformers"


def test_transformers_runs_whatever_is_asked_of_tensor_parallel_size():
    check_engine_request("transformers", 64, 8)


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (-2, 1)])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(UserError, match="--tensor_parallel_size and --pipeline_parallel_size must be 1 or more"):
        check_engine_request("transformers", *sizes)


@pytest.mark.parametrize(
    ("heads", "shared", "gpus", "size"),
    [
        (40, 40, 0, 1),
        (40, 40, 1, 1),
        (40, 40, 4, 4),
        (40, 40, 3, 2),
        (9, 3, 2, 1),
        (9, 3, 4, 3),
        (32, 8, 8, 8),
        (32, 2, 8, 8),
        (12, 8, 6, 4),
        (12, 8, 3, 2),
    ],
)
def test_the_default_split_divides_attention_heads_and_shared_heads(heads, shared, gpus, size):
    config = LlamaConfig(hidden_size=heads * 8, num_attention_heads=heads, num_key_value_heads=shared)
    assert widest_split(config, gpus) == size


@no_gpu
@pytest.mark.parametrize(
    ("checkpoint", "asked", "is_fast", "dtype"),
    [
        ("bfloat16", "float32", True, "float32"),
        ("bfloat16", "auto", True, "bfloat16"),
        ("bfloat16", "auto", False, "float32"),
        ("float16", "auto", True, "float32"),
        ("float32", "auto", True, "float32"),
    ],
)
def test_transformers_computes_in_bfloat16_only_where_it_is_faster(monkeypatch, checkpoint, asked, is_fast, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": is_fast})
    assert dtype_in_transformers(checkpoint, asked) == dtype


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed here")
def test_vllm_that_is_not_installed_is_told_with_the_remedy():
    with pytest.raises(UserError, match=r"not installed; run `bash scripts/setup_env.sh --vllm`"):
        check_engine_request("vllm", 1, 1)


@pytest.mark.vllm
@pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed; `bash scripts/test.sh --vllm` installs it")
def test_more_workers_than_the_machine_has_room_for_are_refused():
    available = torch.cuda.device_count() or len(available_cores())
    check_engine_request("vllm", available, 1)
    with pytest.raises(UserError, match=f"--tensor_parallel_size {available + 1} .*there are {available}"):
        check_engine_request("vllm", available + 1, 1)
    if HAS_GPU:
        with pytest.raises(UserError, match="--pipeline_parallel_size"):
            check_engine_request("vllm", 1, available + 1)
    else:
        with pytest.raises(UserError, match="--pipeline_parallel_size 1"):
            check_engine_request("vllm", 1, 2)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} holds no config.json"):
        open_engine("transformers", tmp_path, 1, 1)


def test_a_broken_model_is_told_in_one_line(tmp_path):
    folder = write_tiny_llama(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=str(folder)) as refused:
        open_engine("transformers", folder, 1, 1)
    assert "\n" not in str(refused.value)


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def with_another_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 4)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def pickled_garbage(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"garbage" * 100)


class RunsACommand:
    def __reduce__(self):
        return os.system, ("touch ran",)


def pickled_program(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": RunsACommand()}, folder / "pytorch_model.bin")


def a_list_for_a_config(folder: Path) -> None:
    (folder / "generation_config.json").write_text("[]")


def no_attention(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "mamba"}')


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (without_a_tensor, "lacks tensor model.layers.1.mlp.up_proj.weight"),
        (with_another_shape, "tensor model.layers.1.mlp.up_proj.weight has the shape 3 x 4"),
        (pickled_garbage, "(*.bin) is broken"),
        (pickled_program, "(*.bin) is broken or holds more than tensors"),
        (a_list_for_a_config, "generation_config.json is not a JSON object"),
        (no_attention, "mamba model has no attention"),
    ],
)
def test_a_model_that_cannot_be_run_as_it_is_gets_one_line(tmp_path, monkeypatch, capfd, break_it, told):
    """Never a score of random numbers in place of weights, and nothing beside the line on stderr."""
    folder = write_tiny_llama(tmp_path / "model")
    break_it(folder)
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    with pytest.raises(UserError, match=f"{re.escape(str(folder))}.*{re.escape(told)}") as refused:
        open_engine("transformers", folder, 2, 1)
    assert "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "ran").exists()


def test_a_missing_tensor_is_told_before_vllm_is_started(tmp_path):
    folder = write_tiny_llama(tmp_path / "model")
    check_weights(folder, load_config(folder))
    without_a_tensor(folder)
    with pytest.raises(UserError, match=r"lacks tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        VllmEngine(folder, 1, 1)


def test_weights_that_are_no_numbers_are_told_rather_than_completed_with_nothing(tmp_path):
    folder = write_tiny_llama(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    engine = open_engine("transformers", folder, 1, 1)
    with pytest.raises(UserError, match=f"{folder}: the model computes NaN"):
        next(engine.generate(PROMPTS[:2], Sampling(max_tokens=2)))
    engine.close()


@no_gpu
def test_without_a_gpu_auto_is_transformers_and_says_what_has_no_effect(tmp_path, capfd):
    folder = write_tiny_llama(tmp_path / "model")
    engine_room._say_once.cache_clear()  # another test may have had it said
    capfd.readouterr()
    for _ in range(2):
        engine = open_engine("auto", folder, 2, 1)
        assert isinstance(engine, TransformersEngine)
        assert len(dict(engine.generate(PROMPTS[:2], Sampling(max_tokens=2)))) == 2
        engine.close()
    notices = [line for line in capfd.readouterr().out.splitlines() if "--tensor_parallel_size" in line]
    assert len(notices) == 1
    assert "no effect" in notices[0]


def test_importing_and_checking_loads_no_engine():
    """A merge checks its request first, and must not wait for packages that it may never need."""
    heavy = "[name for name in ('torch', 'transformers', 'vllm') if name in sys.modules]"
    assert run_python(f"import sys, inference_llms, inference_llms.engines.engine; print({heavy})").stdout == "[]\n"
    code = f"""
import sys
from inference_llms.engines.engine import check_engine_request, resolve_backend
check_engine_request("auto", 1, 1); resolve_backend("auto")
assert not {{"transformers", "vllm"}} & set(sys.modules), {heavy}
"""
    assert run_python(code).returncode == 0
