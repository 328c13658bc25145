"""Llama-shaped checkpoints for benchmarks: a base and fine-tunes in float16, in shards of 1 GB."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_merging_methods.checkpoints.checkpoint_writer import CheckpointWriter, TensorForm, plan_shards, write_index
from utils.whole_files import empty_folder, whole_folder, write_json

_SHARD = 1_000_000_000  # bytes
_BLOCK = 1 << 20  # values
_WEIGHTS, _CHANGES = np.float32(0.02), np.float32(0.001)  # standard deviations: |δ| / |θ0| is 0.05


@dataclass(frozen=True)
class LlamaShape:
    """A Llama's sizes."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    vocabulary: int = 32_000

    def forms(self) -> dict[str, TensorForm]:
        """The form of each parameter, in float16."""
        key_value = self.hidden // self.heads * self.key_value_heads
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            shapes_of_layer = {
                "self_attn.q_proj": (self.hidden, self.hidden),
                "self_attn.k_proj": (key_value, self.hidden),
                "self_attn.v_proj": (key_value, self.hidden),
                "self_attn.o_proj": (self.hidden, self.hidden),
                "mlp.gate_proj": (self.intermediate, self.hidden),
                "mlp.up_proj": (self.intermediate, self.hidden),
                "mlp.down_proj": (self.hidden, self.intermediate),
                "input_layernorm": (self.hidden,),
                "post_attention_layernorm": (self.hidden,),
            }
            shapes.update({f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes_of_layer.items()})
        shapes["model.norm.weight"] = (self.hidden,)
        shapes["lm_head.weight"] = (self.vocabulary, self.hidden)
        return {name: TensorForm("F16", shape) for name, shape in shapes.items()}

    @property
    def parameters(self) -> int:
        return sum(form.numel for form in self.forms().values())

    def config(self) -> dict:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "float16",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }


SHAPES: Mapping[str, LlamaShape] = {
    "tiny": LlamaShape(2, 64, 128, 4, 4, vocabulary=500),
    "0.16": LlamaShape(12, 768, 3072, 12, 12),
    "1.1": LlamaShape(22, 2048, 5632, 32, 4),  # TinyLlama
    "3": LlamaShape(26, 3200, 8640, 32, 32),  # OpenLLaMA 3B
    "7": LlamaShape(32, 4096, 11008, 32, 32),  # Llama-2-7B
}


def make_checkpoint(folder: Path, shape: LlamaShape, number: int) -> None:
    """The base (number 0) or a fine-tune of it: θ0 ~ N(0, 0.02²), θi = θ0 + N(0, 0.001²), rounded to float16. An
    existing folder is kept."""
    if folder.exists():
        return
    forms = shape.forms()
    shards = plan_shards(forms, _SHARD)
    blocks = [(name, start) for name, form in forms.items() for start in range(0, form.numel, _BLOCK)]
    with whole_folder(folder) as unfinished:
        empty_folder(unfinished)
        write_json(unfinished / "config.json", shape.config())
        write_index(unfinished, shards, forms)
        with CheckpointWriter(unfinished, shards, forms) as writer, ThreadPoolExecutor() as pool:

            def fill(index: int) -> None:
                name, start = blocks[index]
                size = min(_BLOCK, forms[name].numel - start)
                values = _WEIGHTS * np.random.Generator(np.random.SFC64([0, index])).standard_normal(size, np.float32)
                if number:
                    noise = np.random.Generator(np.random.SFC64([number, index]))
                    values += _CHANGES * noise.standard_normal(size, np.float32)
                writer.write(name, start, values.astype(np.float16).view(np.uint8))

            for _ in pool.map(fill, range(len(blocks))):
                pass
