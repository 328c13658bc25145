"""Opens vLLM on kinds of models without weights, and prints whether each proves itself: run as a process, because vLLM
changes the one that it runs in.

    python -m tests.inference_llms.live_kinds FOLDER
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

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

from tests.inference_llms.tiny_llama import write_tiny_llama
from utils.errors import UserError

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
# Of sizes at which vLLM packs the weights of linear layers.
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
        if parameter.ndim == 1:  # biases and norms that a model begins with are zeros and ones
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.to(dtype).save_pretrained(folder)
    return FileWeights(folder / "model.safetensors")


def outcome(engine, folder: Path, weights: FileWeights) -> str:
    from inference_llms.engines.engine_proof import prove

    try:
        prove(engine, folder, weights)
    except UserError as error:
        return str(error)
    return "proved"


def main(root: Path) -> None:
    from inference_llms.engines import vllm_weights
    from inference_llms.engines.vllm_live_engine import VllmLiveEngine

    reprocessed = vllm_weights._tied_layers
    for kind, (model_class, config, dtype) in KINDS.items():
        torch.manual_seed(0)
        first, second = (write_weights(model_class(config), dtype, root / kind / name) for name in ("first", "second"))
        folder = write_tiny_llama(root / kind / "empty")  # for its tokenizer
        (folder / "model.safetensors").unlink()
        (folder / "config.json").write_bytes(first.file.with_name("config.json").read_bytes())
        engine = VllmLiveEngine(folder, 1, 1)
        found = {"given weights": outcome(engine, folder, first), "given others": outcome(engine, folder, second)}
        vllm_weights._tied_layers = lambda model: iter(())
        found["without the tied layers"] = outcome(engine, folder, first)
        vllm_weights._tied_layers = reprocessed
        engine.close()
        print(json.dumps({"kind": kind, **found}), flush=True)


if __name__ == "__main__":
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    main(Path(sys.argv[1]))
