"""The choice of an engine, and early refusals."""

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

from inference_llms.engines import open_engine as module
from inference_llms.engines.engine import Sampling
from inference_llms.engines.model_loading import check_weights, dtype_in_transformers, load_config, widest_split
from inference_llms.engines.open_engine import check_engine_request, open_engine, resolve_backend
from inference_llms.engines.transformers import TransformersEngine
from inference_llms.engines.vllm import VllmEngine
from tests.inference_llms.engines.tiny_llama import PROMPTS, write_tiny_llama
from utils.errors import UserError
from utils.machine import available_cores

ROOT = Path(__file__).parents[3]
HAS_GPU = torch.cuda.device_count() > 0
HAS_VLLM = importlib.util.find_spec("vllm") is not None
no_gpu = pytest.mark.skipif(HAS_GPU, reason="there is a GPU here")


@pytest.fixture
def folder(tmp_path):
    return write_tiny_llama(tmp_path / "model")


def test_auto_is_vllm_only_with_a_gpu_and_vllm():
    assert resolve_backend("auto") == ("vllm" if HAS_GPU and HAS_VLLM else "transformers")
    assert [resolve_backend(backend) for backend in ("vllm", "transformers")] == ["vllm", "transformers"]


def test_transformers_accepts_any_parallel_sizes_from_one_up():
    check_engine_request("transformers", 64, 8)
    for sizes in [(0, 1), (1, 0), (-2, 1)]:
        with pytest.raises(UserError, match="--tensor_parallel_size and --pipeline_parallel_size must be 1 or more"):
            check_engine_request("transformers", *sizes)


def test_the_default_split_divides_attention_heads_and_shared_heads():
    for heads, shared, gpus, size in [
        (40, 40, 0, 1), (40, 40, 4, 4), (40, 40, 3, 2), (9, 3, 2, 1), (9, 3, 4, 3), (32, 2, 8, 8), (12, 8, 6, 4)
    ]:  # fmt: skip
        config = LlamaConfig(hidden_size=heads * 8, num_attention_heads=heads, num_key_value_heads=shared)
        assert widest_split(config, gpus) == size, (heads, shared, gpus)


@no_gpu
@pytest.mark.parametrize(
    ("checkpoint", "engine_dtype", "is_fast", "dtype"),
    [
        ("bfloat16", "float32", True, "float32"),
        ("bfloat16", "auto", True, "bfloat16"),
        ("bfloat16", "auto", False, "float32"),
        ("float16", "auto", True, "float32"),
        ("float32", "auto", True, "float32"),
    ],
)
def test_transformers_computes_in_bfloat16_only_if_it_is_faster(monkeypatch, checkpoint, engine_dtype, is_fast, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": is_fast})
    assert dtype_in_transformers(checkpoint, engine_dtype) == dtype


def test_a_missing_vllm_is_reported_with_the_remedy(monkeypatch):
    monkeypatch.setattr(module, "_vllm_is_installed", lambda: False)
    with pytest.raises(UserError, match=r"not installed; run `bash scripts/setup_env.sh --vllm`"):
        check_engine_request("vllm", 1, 1)


@pytest.mark.parametrize("gpus", [0, 2])
def test_more_workers_than_gpus_or_cores_are_refused(monkeypatch, gpus):
    monkeypatch.setattr(module, "_vllm_is_installed", lambda: True)
    monkeypatch.setattr(module, "_vllm_runs_on_cpu", lambda: True)
    monkeypatch.setattr(module, "_gpu_count", lambda: gpus)
    available = gpus or len(available_cores())
    check_engine_request("vllm", available, 1)
    check_engine_request("vllm", available + 1, 1, "ray")
    with pytest.raises(UserError, match=f"--tensor_parallel_size {available + 1} .*there are {available}"):
        check_engine_request("vllm", available + 1, 1)
    with pytest.raises(UserError, match="--pipeline_parallel_size"):
        check_engine_request("vllm", 1, available + 1)


def test_a_vllm_without_a_cpu_build_is_refused_on_the_cpu(monkeypatch):
    monkeypatch.setattr(module, "_vllm_is_installed", lambda: True)
    monkeypatch.setattr(module, "_vllm_runs_on_cpu", lambda: False)
    monkeypatch.setattr(module, "_gpu_count", lambda: 0)
    with pytest.raises(UserError, match=r"needs a GPU.*--backend transformers"):
        check_engine_request("vllm", 1, 1)


UP_PROJ = "model.layers.1.mlp.up_proj.weight"


def write(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


def edit_tensors(edit):
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


without_a_tensor = edit_tensors(lambda tensors: tensors.pop(UP_PROJ))
with_another_shape = edit_tensors(lambda tensors: tensors.update({UP_PROJ: torch.zeros(3, 4)}))


class RunsACommand:
    def __reduce__(self):
        return os.system, ("touch ran",)


def pickled_program(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": RunsACommand()}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_a_tensor, f"lacks tensor {UP_PROJ}"),
        (with_another_shape, f"tensor {UP_PROJ} has the shape 3 x 4"),
        (pickled_program, "(*.bin) is broken or holds more than tensors"),
        (write("generation_config.json", "[]"), "generation_config.json is not a JSON object"),
        (write("config.json", '{"model_type": "mamba"}'), "mamba model has no attention"),
    ],
)
def test_a_model_that_cannot_run_is_refused_in_one_line(folder, tmp_path, monkeypatch, capfd, damage, message):
    damage(folder)
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    with pytest.raises(UserError, match=re.escape(message)) as refused:
        open_engine("transformers", folder, 2, 1)
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", [without_a_tensor, with_another_shape])
def test_vllm_refuses_missing_and_misshapen_tensors_before_it_starts(folder, damage):
    check_weights(folder, load_config(folder))
    damage(folder)
    with pytest.raises(UserError, match=UP_PROJ):
        VllmEngine(folder, 1, 1)


def test_weights_that_are_not_finite_are_reported_instead_of_completions(folder):
    edit_tensors(lambda tensors: tensors[UP_PROJ].fill_(float("nan")))(folder)
    engine = open_engine("transformers", folder, 1, 1)
    with pytest.raises(UserError, match=f"{folder}: the model computes NaN"):
        next(engine.complete(PROMPTS[:2], Sampling(max_tokens=2)))


@no_gpu
def test_without_a_gpu_auto_is_transformers_and_ignored_sizes_are_reported_once(folder, capfd):
    module._report_ignored_sizes.cache_clear()  # another test may have triggered it
    capfd.readouterr()
    for _ in range(2):
        engine = open_engine("auto", folder, 2, 1)
        assert isinstance(engine, TransformersEngine)
        assert len(dict(engine.complete(PROMPTS[:2], Sampling(max_tokens=2)))) == 2
    (notice,) = [line for line in capfd.readouterr().out.splitlines() if "--tensor_parallel_size" in line]
    assert "no effect" in notice


def test_importing_and_checking_loads_no_engine():
    """A merge checks its request first, and must not wait for packages that it may never need."""
    code = """
import sys
from inference_llms.engines.open_engine import check_engine_request, resolve_backend
assert not {"torch", "transformers", "vllm"} & set(sys.modules)
check_engine_request("auto", 1, 1); resolve_backend("auto")
assert not {"transformers", "vllm"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
