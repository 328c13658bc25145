"""A vLLM engine whose weights were replaced must prove that it computes with the new ones.

Run as a program, this file opens vLLM on several kinds of models and prints the outcome of each proof:

    python -m tests.inference_llms.engines.test_engine_proof FOLDER
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from inference_llms.engines.engine import ScoredText
from inference_llms.engines.engine_proof import check_against, prove
from tests.inference_llms.engines.tiny_llama import write_tiny_llama
from tests.vllm_marks import vllm_installed
from utils.errors import UserError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def exact() -> torch.Tensor:
    """Log-probabilities of 10 tokens after the first, in a vocabulary of 50."""
    return (3 * torch.randn(10, 50, generator=torch.Generator().manual_seed(0))).log_softmax(-1)


def text_of(scores: torch.Tensor, completion: torch.Tensor | None = None) -> ScoredText:
    """A prompt of the four likeliest tokens and a completion, by default of the likeliest ones too."""
    tokens = [0, *scores[:3].argmax(1).tolist(), *(scores[3:].argmax(1) if completion is None else completion).tolist()]
    return ScoredText(tokens, 4, scores.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist())


def test_rounding_is_accepted(exact):
    rounded = exact.bfloat16().float()
    check_against([text_of(exact)], [exact], [exact])
    check_against([replace(text_of(exact), log_probabilities=text_of(rounded).log_probabilities)], [exact], [rounded])


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda exact: text_of(exact - 0.05), "log-probabilities"),
        (lambda exact: text_of(exact, exact[3:].argmin(1)), "completions"),
        (lambda exact: replace(text_of(exact), log_probabilities=[float("nan")] * 10), "log-probabilities"),
    ],
    ids=["less likely", "an unlikely completion", "not a number"],
)
def test_more_than_rounding_stops_the_search(exact, change, name):
    with pytest.raises(UserError, match=f"computes other {name} than transformers.*--backend transformers") as stopped:
        check_against([change(exact)], [exact], [exact.bfloat16().float()])
    assert "\n" not in str(stopped.value)


@pytest.mark.vllm
@vllm_installed
def test_vllm_computes_with_the_latest_weights(tmp_path):
    """In a separate process, because vLLM changes the one that it runs in."""
    command = [sys.executable, "-m", "tests.inference_llms.engines.test_engine_proof", str(tmp_path)]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    outcomes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(outcomes) == len(KINDS)
    for kind in outcomes:
        assert kind["first weights"] == kind["second weights"] == "proved", kind
        if "tied" in kind["kind"]:  # else the check would not see an old head
            assert "computes other log-probabilities" in kind["without the tied layers"], kind


SIZES = {
    "vocab_size": 600,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
}
EXPERTS = {"head_dim": 64, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
GPT2 = {"vocab_size": 600, "n_embd": 256, "n_layer": 2, "n_head": 4, "n_positions": 256}
# In these sizes vLLM packs the weights of linear layers.
KINDS = {
    "tied head in bfloat16": (LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=True), torch.bfloat16),
    "tied head and biases in float32": (GPT2LMHeadModel, GPT2Config(**GPT2), torch.float32),
    "fused experts": (Qwen3MoeForCausalLM, Qwen3MoeConfig(**SIZES, **EXPERTS), torch.bfloat16),
}


class FileWeights:
    def __init__(self, file: Path):
        self.file = file

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(load_file(self.file).items())


def write_weights(model: PreTrainedModel, dtype: torch.dtype, folder: Path) -> FileWeights:
    for parameter in model.parameters():
        if parameter.ndim == 1:  # a new model's biases and norms are zeros and ones
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.to(dtype).save_pretrained(folder)
    return FileWeights(folder / "model.safetensors")


def main(root: Path) -> None:
    from inference_llms.engines import vllm_weights
    from inference_llms.engines.vllm import VllmEngine

    def outcome(weights: FileWeights) -> str:
        try:
            prove(engine, folder, weights)
        except UserError as error:
            return str(error)
        return "proved"

    find_tied_layers = vllm_weights._tied_layers
    for kind, (model_class, config, dtype) in KINDS.items():
        torch.manual_seed(0)
        first, second = (write_weights(model_class(config), dtype, root / kind / name) for name in ("first", "second"))
        folder = write_tiny_llama(root / kind / "empty")  # for its tokenizer
        (folder / "model.safetensors").unlink()
        (folder / "config.json").write_bytes(first.file.with_name("config.json").read_bytes())
        engine = VllmEngine(folder, 1, 1, has_weights=False)
        outcomes = {"first weights": outcome(first), "second weights": outcome(second)}
        vllm_weights._tied_layers = lambda model: iter(())
        outcomes["without the tied layers"] = outcome(first)
        vllm_weights._tied_layers = find_tied_layers
        engine.close()
        print(json.dumps({"kind": kind, **outcomes}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
