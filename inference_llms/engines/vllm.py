"""Completions from vLLM, on one GPU or several, or with its CPU build on the processor's cores."""

import gc
import hashlib
import math
import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from inference_llms.engines.engine import NO_ROOM, Completion, Likelihood, Prompt, Sampling, ScoredText, Weights
from inference_llms.engines.model_loading import (
    cache_bytes_per_token,
    check_weights,
    checkpoint_dtype,
    context_length,
    generation_config,
    load_config,
    open_tokenizer,
    refusals_in_one_line,
    tokens_of_prompts,
    widest_split,
)
from utils.errors import UserError
from utils.machine import available_cores

SECONDS_TO_SHUT_DOWN = 60


class VllmEngine:
    """A model in vLLM, split over tensor_parallel_size times pipeline_parallel_size GPUs or, without a GPU, over as
    many worker processes that share the processor's cores evenly.

    float32 checkpoints run in float16 on GPUs, as in the paper; on the CPU float16 ones run in float32.
    Others keep their dtype. When weights are replaced, each worker computes them and keeps its own slice: no process
    holds the whole model, and only their description travels between machines.
    """

    def __init__(
        self,
        model_folder: Path,
        tensor_parallel_size: int | None,
        pipeline_parallel_size: int,
        executor: str | None = None,
        has_weights: bool = True,
    ):
        """Start vLLM's processes and load the model; see `open_engine.open_engine` for the arguments. Raises UserError
        for a model that vLLM refuses."""
        gpus = torch.cuda.device_count()
        with refusals_in_one_line(model_folder, "vLLM"):
            config = load_config(model_folder)
            self.tokenizer = open_tokenizer(model_folder)
            if tensor_parallel_size is None:
                tensor_parallel_size = widest_split(config, gpus // pipeline_parallel_size)
            heads = config.get_text_config().num_attention_heads
            if heads % tensor_parallel_size:
                raise UserError(
                    f"--tensor_parallel_size {tensor_parallel_size} does not divide the {heads} attention heads of "
                    f"{model_folder}; choose one that does"
                )
            # vLLM joins gate_proj and up_proj into one tensor, and counts it as loaded if one of them is present.
            if has_weights:
                check_weights(model_folder, config)
            dtype = checkpoint_dtype(config)
            dtype = ({"float32": "float16"} if gpus else {"float16": "float32"}).get(dtype, dtype)
            environment = {**_QUIET, "VLLM_LOGGING_LEVEL": "WARNING"}
            if gpus == 0:
                environment |= _cpu_environment(config, dtype, tensor_parallel_size * pipeline_parallel_size)
            with _environment(environment):
                from vllm import LLM

                self._llm: Any = LLM(
                    model=str(model_folder),
                    tensor_parallel_size=tensor_parallel_size,
                    pipeline_parallel_size=pipeline_parallel_size,
                    distributed_executor_backend=executor,
                    dtype=dtype,
                    trust_remote_code=False,
                    # On the CPU, compiling adds half a minute to every start and needs a C++ compiler.
                    enforce_eager=gpus == 0,
                    disable_log_stats=True,
                    use_tqdm_on_load=False,
                    load_format="auto" if has_weights else "dummy",
                    worker_extension_cls="inference_llms.engines.vllm_weights.ReplaceableWeights",
                )
        self._folder = model_folder
        model_config = self._llm.llm_engine.model_config
        self.dtype: torch.dtype = model_config.dtype
        self.context = min(context_length(config), model_config.max_model_len)
        self.longest_scored = self.context - 1  # vLLM generates a token as well
        if not has_weights and model_config.quantization is not None:
            self.close()
            raise UserError(
                f"{model_folder}: vLLM cannot replace the weights of a quantised model; give models in float32, "
                "float16 or bfloat16"
            )

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """Complete all `prompts`, yielding (position in `prompts`, completion) as each ends."""
        from vllm import SamplingParams

        parameters = SamplingParams(
            max_tokens=sampling.max_tokens,
            stop=list(sampling.stop),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
        )
        # vLLM fails on a prompt that is too long, so prompts are tokenized here and such prompts left out.
        prompt_tokens = tokens_of_prompts(self.tokenizer, prompts, self.context)
        requests = [None if tokens is None else {"prompt_token_ids": tokens} for tokens in prompt_tokens]
        yield from ((position, NO_ROOM) for position, request in enumerate(requests) if request is None)
        for position, output in self._outputs(requests, parameters):
            completion = output.outputs[0]
            is_cut_off = completion.finish_reason == "length"
            yield position, Completion(completion.text, len(completion.token_ids), is_cut_off)

    def _outputs(self, requests: Sequence[dict[str, Any] | None], parameters: Any) -> Iterator[tuple[int, Any]]:
        """Yield (position in `requests`, vLLM's output) as each ends. None in place of a request is left out."""
        engine = self._llm.llm_engine
        unfinished: set[str] = set()
        try:
            for position, request in enumerate(requests):
                if request is not None:
                    engine.add_request(str(position), request, parameters)
                    unfinished.add(str(position))
            while unfinished:
                for output in engine.step():
                    if output.finished:
                        unfinished.discard(output.request_id)
                        yield int(output.request_id), output
        finally:
            # Otherwise a caller that stops early would get these among its next outputs.
            engine.abort_request(sorted(unfinished))

    def log_likelihoods(self, texts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Iterator[tuple[int, Likelihood]]:
        """The likelihood of the second part of each text given the first, as each is computed."""
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1)
        requests = [{"prompt_token_ids": [*before, *after]} for before, after in texts]
        for position, output in self._outputs(requests, parameters):
            before, after = texts[position]
            scored = list(zip(after, output.prompt_logprobs[len(before) :], strict=True))
            log_probability = sum(logprobs[token].logprob for token, logprobs in scored)
            greedy = all(max(logprobs, key=lambda key: logprobs[key].logprob) == token for token, logprobs in scored)
            yield position, Likelihood(log_probability, greedy)

    def complete_with_scores(self, prompts: Sequence[list[int]], max_tokens: int) -> list[ScoredText]:
        """The greedy completions of prompts given as tokens, with the log-probability of every token."""
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=max_tokens, temperature=0.0, logprobs=0, prompt_logprobs=0)
        requests = [{"prompt_token_ids": tokens} for tokens in prompts]
        scored = []
        for prompt, output in zip(prompts, self._llm.generate(requests, parameters, use_tqdm=False), strict=True):
            completion = output.outputs[0]
            tokens = [*prompt, *completion.token_ids]
            by_token = [*output.prompt_logprobs[1:], *completion.logprobs]
            numbers = [logprobs[token].logprob for logprobs, token in zip(by_token, tokens[1:], strict=True)]
            scored.append(ScoredText(tokens, len(prompt), numbers))
        return scored

    def replace_weights(self, weights: Weights) -> None:
        try:
            self._llm.collective_rpc("replace_weights", args=(pickle.dumps(weights),))
        except Exception as error:  # vLLM's own type, with the worker's error in its text
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"{self._folder}: vLLM cannot load these weights ({reason}); choose --backend transformers"
            ) from error
        self._llm.reset_prefix_cache()

    def take_tokenizer(self, folder: Path) -> None:
        from vllm.tokenizers import get_tokenizer

        self.tokenizer = open_tokenizer(folder)
        # vLLM decodes in this process, with its own tokenizer class, and keeps the tokenizer in two places.
        tokenizer = get_tokenizer(str(folder), trust_remote_code=False)
        engine = self._llm.llm_engine
        engine.renderer.tokenizer = engine.output_processor.tokenizer = tokenizer
        engine.input_processor.generation_config_fields = generation_config(folder).to_diff_dict()

    def checksum(self) -> str:
        checksums = self._llm.collective_rpc("checksum_of_weights")
        return hashlib.sha256("\n".join(checksums).encode()).hexdigest()

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


# Turns off usage reports over the network, and harmless messages that vLLM prints at every start.
_QUIET = {"VLLM_NO_USAGE_STATS": "1", "PYTHONWARNINGS": "ignore::FutureWarning", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def _cpu_environment(config: PreTrainedConfig, dtype: str, workers: int) -> dict[str, str]:
    """The environment variables of vLLM's CPU build: GiB of cache for each worker, enough for at least one prompt, and
    the cores of each worker."""
    context = min(context_length(config), 2**20)
    needed = cache_bytes_per_token(config, getattr(torch, dtype).itemsize) * context / workers
    cores = available_cores()
    share = len(cores) // workers
    bound = [",".join(map(str, cores[worker * share : (worker + 1) * share])) for worker in range(workers)]
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, math.ceil(needed / 2**30))),
        "VLLM_CPU_OMP_THREADS_BIND": "|".join(bound),
        # Its warnings advise on libraries to preload, in a dozen lines at every start.
        "VLLM_LOGGING_LEVEL": "ERROR",
    }


@contextmanager
def _environment(wanted: dict[str, str]) -> Iterator[None]:
    """Set the variables in `wanted`, except those that the user has set, and restore the environment at the end.

    vLLM's processes inherit the environment when they start. vLLM itself also sets variables, LD_PRELOAD
    among them, that other programs started from here must not see.
    """
    before = dict(os.environ)
    os.environ.update({name: value for name, value in wanted.items() if name not in before})
    # A fork would copy a process that has threads, and perhaps a GPU in use.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
