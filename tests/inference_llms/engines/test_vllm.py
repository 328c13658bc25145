"""Real vLLM: with two tensor-parallel workers, then with one, in one process, as a run with two models has it."""

import json
import os

import psutil
import pytest
import torch

from inference_llms.engines.engine import CutOff, Sampling, open_engine
from tests.inference_llms.tiny_llama import CONTEXT, PROMPTS, write_tiny_llama
from tests.vllm_marks import two_workers, vllm_installed
from utils.errors import UserError

pytestmark = [pytest.mark.vllm, vllm_installed]
STOPS = ("re", "a")


def completions(engine, prompts, **sampling):
    return dict(engine.generate(prompts, Sampling(**sampling)))


def child_processes():
    """Processes started from here that still run, but for Python's own tracker of shared memory, which stays
    until the end."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "resource_tracker" not in " ".join(child.cmdline())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_llama(tmp_path_factory.mktemp("tiny_llama"))


@pytest.fixture(scope="module")
def by_transformers(folder):
    engine = open_engine("transformers", folder, 1, 1)
    expected = {
        "plain": completions(engine, PROMPTS, max_tokens=40),
        "stopped": completions(engine, PROMPTS, max_tokens=40, stop=STOPS),
        "short": completions(engine, PROMPTS, max_tokens=3),
    }
    engine.close()
    return expected


def agreement(one, other):
    """The share of equal completions, which the limit of tokens ended in both or in neither."""
    assert sorted(one) == sorted(other)
    equal = [one[position] == other[position] for position in one]
    cut_off = [isinstance(one[position], CutOff) == isinstance(other[position], CutOff) for position in one]
    return sum(map(min, equal, cut_off)) / len(one)


def shared_memory():
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


@two_workers
def test_two_engines_one_after_the_other(folder, tmp_path, by_transformers, capfd):
    """One start for each: workers take half a minute.

    The model's greedy choices are decisive (tiny_llama.py), so the engines must agree on every prompt in
    float32; on a GPU, in float16, on most.
    """
    least = 1.0 if torch.cuda.device_count() == 0 else 0.8
    environment, shared = dict(os.environ), shared_memory()
    assert child_processes() == []

    engine = open_engine("vllm", folder, 2, 1)
    try:
        assert dict(os.environ) == environment
        assert len(child_processes()) >= 3, "an engine core and two workers"
        assert agreement(completions(engine, PROMPTS, max_tokens=40), by_transformers["plain"]) >= least
        assert agreement(completions(engine, PROMPTS, max_tokens=40, stop=STOPS), by_transformers["stopped"]) >= least
        assert agreement(completions(engine, PROMPTS, max_tokens=3), by_transformers["short"]) >= least

        # Completions come as they end, and those of a caller that stops listening do not come later.
        listening = engine.generate(PROMPTS, Sampling(max_tokens=200, stop=STOPS))
        next(listening)
        listening.close()
        assert agreement(completions(engine, PROMPTS, max_tokens=3), by_transformers["short"]) >= least

        capfd.readouterr()
        crowded = completions(engine, [" a" * 2 * CONTEXT, " a" * (CONTEXT - 3), "", *PROMPTS[:2]], max_tokens=100)
        assert crowded[0] == ""
        assert crowded[1] != ""
        assert "1 of 5 prompts fill the model's context" in capfd.readouterr().err
        assert completions(engine, [], max_tokens=5) == {}

        drawn = completions(engine, PROMPTS, max_tokens=40, temperature=2.0)
        assert agreement(drawn, by_transformers["plain"]) < 0.5
        narrow = completions(engine, PROMPTS, max_tokens=40, temperature=2.0, top_p=1e-6)
        assert agreement(narrow, by_transformers["plain"]) >= least
    finally:
        engine.close()
    assert child_processes() == []
    assert dict(os.environ) == environment
    assert shared_memory() <= shared
    engine.close()

    half = write_tiny_llama(tmp_path / "half", torch.float16)
    engine = open_engine("vllm", half, 1, 1)
    try:
        transformers_engine = open_engine("transformers", half, 1, 1)
        expected = completions(transformers_engine, PROMPTS, max_tokens=40)
        transformers_engine.close()
        assert agreement(completions(engine, PROMPTS, max_tokens=40), expected) >= least
    finally:
        engine.close()
    assert child_processes() == []
    assert dict(os.environ) == environment


@two_workers
def test_workers_that_do_not_divide_the_heads_are_refused_at_once(tmp_path):
    folder = write_tiny_llama(tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 128})
    )
    with pytest.raises(UserError, match="--tensor_parallel_size 2 does not divide the 1 attention heads"):
        open_engine("vllm", folder, 2, 1)
    assert child_processes() == []


def test_an_architecture_that_vllm_does_not_know_is_refused_in_one_line(tmp_path):
    folder = write_tiny_llama(tmp_path / "unknown")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "made_up"}))
    with pytest.raises(UserError, match="unknown") as refused:
        open_engine("vllm", folder, 1, 1)
    assert "\n" not in str(refused.value)
    assert child_processes() == []
