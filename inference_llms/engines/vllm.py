"""Completions from vLLM, on one GPU or several, or with its CPU build on the processor's cores."""

import gc
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from inference_llms.engines.engine import (
    CutOff,
    Sampling,
    cache_bytes_per_token,
    checkpoint_dtype,
    context_length,
    gpu_count,
    tokens_of_prompts,
    widest_split,
)
from inference_llms.engines.model_loading import check_weights, load_config, refusals_in_one_line
from utils.cores import available_cores
from utils.errors import UserError
from utils.transformers_classes import AutoTokenizer, PreTrainedConfig

SECONDS_TO_SHUT_DOWN = 60


class VllmEngine:
    """A model in vLLM, spread over tensor_parallel_size times pipeline_parallel_size GPUs or, where there
    is none, over as many worker processes that share the processor's cores evenly. `tensor_parallel_size` None: as
    many as the GPUs and the model's heads allow.

    float32 checkpoints run in float16 on GPUs, as in the paper; on the CPU float16 ones run in float32.
    Others keep their dtype.
    """

    def __init__(
        self,
        model_folder: Path,
        tensor_parallel_size: int | None,
        pipeline_parallel_size: int,
        has_weights: bool = True,
        **options: Any,
    ):
        """Start vLLM's processes, with further `options` of theirs, and load the model, or one of its shape with
        arbitrary weights where the folder has none. Raises UserError for a model that vLLM refuses."""
        on_gpu = gpu_count() > 0
        with refusals_in_one_line(model_folder, "vLLM"):
            config = load_config(model_folder)
            self._tokenizer = AutoTokenizer.from_pretrained(model_folder, trust_remote_code=False)
            if tensor_parallel_size is None:
                tensor_parallel_size = widest_split(config, gpu_count() // pipeline_parallel_size)
            _check_heads(config, model_folder, tensor_parallel_size)
            # vLLM joins gate_proj and up_proj into one tensor, and takes it for loaded when one of them is there.
            if has_weights:
                check_weights(model_folder, config)
            dtype = _dtype_in_vllm(checkpoint_dtype(config), on_gpu)
            environment = {**_QUIET, "VLLM_LOGGING_LEVEL": "WARNING"}
            if not on_gpu:
                workers = tensor_parallel_size * pipeline_parallel_size
                environment |= _cpu_environment(config, dtype, workers)
            with _environment(environment):
                from vllm import LLM

                self._llm: Any = LLM(
                    model=str(model_folder),
                    tensor_parallel_size=tensor_parallel_size,
                    pipeline_parallel_size=pipeline_parallel_size,
                    dtype=dtype,
                    trust_remote_code=False,
                    # On the CPU, compiling adds half a minute to every start and needs a C++ compiler.
                    enforce_eager=not on_gpu,
                    disable_log_stats=True,
                    use_tqdm_on_load=False,
                    load_format="auto" if has_weights else "dummy",
                    **options,
                )
        self.dtype: torch.dtype = self._llm.llm_engine.model_config.dtype
        self._context = min(context_length(config), self._llm.llm_engine.model_config.max_model_len)

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> Iterator[tuple[int, str]]:
        """Complete all `prompts`, yielding (position in `prompts`, completion) as each is done."""
        from vllm import SamplingParams

        parameters = SamplingParams(
            max_tokens=sampling.max_tokens,
            stop=list(sampling.stop),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
        )
        # vLLM stops at a prompt that is too long, so prompts are cut into tokens and judged here.
        asked = {}
        for position, tokens in enumerate(tokens_of_prompts(self._tokenizer, prompts, self._context)):
            if tokens is None:
                yield position, CutOff()
            else:
                asked[position] = {"prompt_token_ids": tokens}
        if hasattr(self._llm.llm_engine, "step"):
            yield from self._as_they_end(asked, parameters)
        else:
            outputs = self._llm.generate(list(asked.values()), parameters, use_tqdm=False)
            for position, output in zip(asked, outputs, strict=True):
                yield position, _completion(output)

    def close(self) -> None:
        """End vLLM's processes, which hold the model's memory."""
        if self._llm is None:
            return
        # Without the wait vLLM kills its processes after five seconds, and they leave shared memory behind.
        self._llm.llm_engine.engine_core.shutdown(timeout=SECONDS_TO_SHUT_DOWN)
        self._llm = None
        gc.collect()
        if torch.distributed.is_initialized():
            from vllm.distributed import cleanup_dist_env_and_memory

            cleanup_dist_env_and_memory()

    def _as_they_end(self, asked: dict[int, dict[str, Any]], parameters: Any) -> Iterator[tuple[int, str]]:
        engine = self._llm.llm_engine
        unfinished = {str(position) for position in asked}
        try:
            for position, prompt in asked.items():
                engine.add_request(str(position), prompt, parameters)
            while unfinished:
                for output in engine.step():
                    if output.finished:
                        unfinished.discard(output.request_id)
                        yield int(output.request_id), _completion(output)
        finally:
            # A caller that stops half-way must not find these among its next completions.
            engine.abort_request(sorted(unfinished))


# What vLLM prints at every start without anything being wrong, and its reports over the network.
_QUIET = {"VLLM_NO_USAGE_STATS": "1", "PYTHONWARNINGS": "ignore::FutureWarning", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def _completion(output: Any) -> str:
    completion = output.outputs[0]
    return CutOff(completion.text) if completion.finish_reason == "length" else completion.text


def _check_heads(config: PreTrainedConfig, model_folder: Path, tensor_parallel_size: int) -> None:
    heads = config.get_text_config().num_attention_heads
    if heads % tensor_parallel_size:
        raise UserError(
            f"--tensor_parallel_size {tensor_parallel_size} does not divide the {heads} attention heads of "
            f"{model_folder}; choose one that does"
        )


def _dtype_in_vllm(checkpoint: str, on_gpu: bool) -> str:
    changed = {"float32": "float16"} if on_gpu else {"float16": "float32"}
    return changed.get(checkpoint, checkpoint)


def _cpu_environment(config: PreTrainedConfig, dtype: str, workers: int) -> dict[str, str]:
    """What vLLM's CPU build takes from the environment: GiB of cache for each worker, enough for one
    prompt at least, and the cores that each worker is bound to."""
    context = min(context_length(config), 2**20)
    needed = cache_bytes_per_token(config, getattr(torch, dtype).itemsize) * context / workers
    cores = available_cores()
    share = len(cores) // workers
    bound = [",".join(map(str, cores[worker * share : (worker + 1) * share])) for worker in range(workers)]
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, math.ceil(needed / 2**30))),
        "VLLM_CPU_OMP_THREADS_BIND": "|".join(bound),
        # Its warnings are advice on libraries to preload, a dozen lines at every start.
        "VLLM_LOGGING_LEVEL": "ERROR",
    }


@contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    """Set what is `wanted`, unless the user has set it, and put everything back in the end.

    vLLM's processes inherit the environment when they start. vLLM itself also sets variables, LD_PRELOAD
    among them, that other programs started from here must not see.
    """
    before = dict(os.environ)
    os.environ.update({name: value for name, value in wanted.items() if name not in before})
    # Forking would hand on a process that has threads, and perhaps a GPU in use.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
