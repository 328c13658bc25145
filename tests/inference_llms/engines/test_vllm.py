"""Real vLLM: two tensor-parallel workers, then one, in one process, as in a run with two models."""

import json
import os

import psutil
import pytest
import torch

from inference_llms.engines.engine import Sampling
from inference_llms.engines.open_engine import open_engine
from tests.inference_llms.engines.tiny_llama import CONTEXT, PROMPTS, write_tiny_llama
from tests.vllm_marks import two_workers, vllm_installed
from utils.errors import UserError

pytestmark = [pytest.mark.vllm, vllm_installed]
STOPS = ("re", "a")


def completions(engine, prompts, **sampling):
    return dict(engine.complete(prompts, Sampling(**sampling)))


def child_processes():
    """Running processes started from here, except Python's own tracker of shared memory, which stays until the end."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "resource_tracker" not in " ".join(child.cmdline())]


SAMPLINGS = {"plain": {"max_tokens": 40}, "stopped": {"max_tokens": 40, "stop": STOPS}, "short": {"max_tokens": 3}}


def by_transformers(folder):
    engine = open_engine("transformers", folder, 1, 1)
    return {name: completions(engine, PROMPTS, **sampling) for name, sampling in SAMPLINGS.items()}


def agreement(one, other):
    """The share of completions that are equal and cut off in both or in neither."""
    assert sorted(one) == sorted(other)
    equal = [one[position] == other[position] for position in one]
    cut_off = [one[position].cut_off == other[position].cut_off for position in one]
    return sum(map(min, equal, cut_off)) / len(one)


def shared_memory():
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


@two_workers
def test_two_engines_one_after_the_other(tmp_path, capfd):
    """The model's greedy choices are decisive (tiny_llama.py), so the engines must agree on every prompt in
    float32; on a GPU, in float16, on most. All in one test, because workers take half a minute to start."""
    folder, half = write_tiny_llama(tmp_path / "model"), write_tiny_llama(tmp_path / "half", torch.float16)
    least = 1.0 if torch.cuda.device_count() == 0 else 0.8
    environment, shared = dict(os.environ), shared_memory()
    assert child_processes() == []
    expected = by_transformers(folder)

    engine = open_engine("vllm", folder, 2, 1)
    try:
        assert dict(os.environ) == environment
        assert len(child_processes()) >= 3, "an engine core and two workers"
        for name, sampling in SAMPLINGS.items():
            assert agreement(completions(engine, PROMPTS, **sampling), expected[name]) >= least

        # Completions come as they end, and those of a caller that stops listening do not come later.
        listening = engine.complete(PROMPTS, Sampling(max_tokens=200, stop=STOPS))
        next(listening)
        listening.close()
        assert agreement(completions(engine, PROMPTS, max_tokens=3), expected["short"]) >= least

        capfd.readouterr()
        crowded = completions(engine, [" a" * 2 * CONTEXT, " a" * (CONTEXT - 3), "", *PROMPTS[:2]], max_tokens=100)
        assert crowded[0] == ""
        assert crowded[1] != ""
        assert "1 of 5 prompts fill the model's context" in capfd.readouterr().err
        assert completions(engine, [], max_tokens=5) == {}

        drawn = completions(engine, PROMPTS, max_tokens=40, temperature=2.0)
        assert agreement(drawn, expected["plain"]) < 0.5
        narrow = completions(engine, PROMPTS, max_tokens=40, temperature=2.0, top_p=1e-6)
        assert agreement(narrow, expected["plain"]) >= least
    finally:
        engine.close()
    assert child_processes() == []
    assert dict(os.environ) == environment
    assert shared_memory() <= shared
    engine.close()

    expected = by_transformers(half)
    engine = open_engine("vllm", half, 1, 1)
    try:
        assert agreement(completions(engine, PROMPTS, **SAMPLINGS["plain"]), expected["plain"]) >= least
    finally:
        engine.close()
    assert child_processes() == []
    assert dict(os.environ) == environment


@pytest.mark.parametrize(
    ("workers", "changes", "message"),
    [
        pytest.param(
            2,
            {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 128},
            "--tensor_parallel_size 2 does not divide the 1 attention heads",
            marks=two_workers,
        ),
        (1, {"model_type": "made_up"}, "vLLM cannot load this model"),
    ],
)
def test_a_model_that_vllm_cannot_run_is_refused_immediately(tmp_path, workers, changes, message):
    folder = write_tiny_llama(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=message) as refused:
        open_engine("vllm", folder, workers, 1)
    assert str(folder) in str(refused.value) and "\n" not in str(refused.value)
    assert child_processes() == []
