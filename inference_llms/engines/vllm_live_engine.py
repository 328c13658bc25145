"""vLLM with weights that are replaced while it runs."""

import hashlib
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inference_llms.engines.engine_proof import ScoredText
from inference_llms.engines.live_engine import Weights
from inference_llms.engines.model_loading import generation_config
from inference_llms.engines.vllm import VllmEngine
from utils.errors import UserError
from utils.transformers_classes import AutoTokenizer

_WORKER_EXTENSION = "inference_llms.engines.vllm_weights.ReplaceableWeights"


class VllmLiveEngine(VllmEngine):
    """As `VllmEngine`, for `live_engine.LiveEngine`. Each worker computes the weights and keeps its own slice, so that
    no process holds the whole model and nothing but their description crosses between machines."""

    def __init__(
        self,
        model_folder: Path,
        tensor_parallel_size: int | None,
        pipeline_parallel_size: int,
        executor: str | None = None,
    ):
        options: dict[str, Any] = {} if executor is None else {"distributed_executor_backend": executor}
        super().__init__(
            model_folder,
            tensor_parallel_size,
            pipeline_parallel_size,
            has_weights=any(model_folder.glob("*.safetensors")),
            worker_extension_cls=_WORKER_EXTENSION,
            **options,
        )
        self._folder = model_folder
        if self._llm.llm_engine.model_config.quantization is not None:
            self.close()
            raise UserError(
                f"{model_folder}: weights of a quantised model cannot be replaced in vLLM; give models in float32, "
                "float16 or bfloat16"
            )

    def replace_weights(self, weights: Weights) -> None:
        try:
            self._llm.collective_rpc("replace_weights", args=(pickle.dumps(weights),))
        except Exception as error:  # of vLLM's own kind, with the worker's in its text
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"{self._folder}: vLLM cannot take these weights ({reason}); choose --backend transformers"
            ) from error
        self._llm.reset_prefix_cache()

    def take_tokenizer(self, folder: Path) -> None:
        from vllm.tokenizers import get_tokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        # vLLM makes text of tokens in this process, by a tokenizer of its own kind that it has in two places.
        own = get_tokenizer(str(folder), trust_remote_code=False)
        self._llm.llm_engine.renderer.tokenizer = own
        self._llm.llm_engine.output_processor.tokenizer = own
        self._llm.llm_engine.input_processor.generation_config_fields = generation_config(folder).to_diff_dict()

    def complete_with_scores(self, prompts: Sequence[list[int]], max_tokens: int) -> list[ScoredText]:
        """The greedy completions of prompts given as tokens, with the log-probability of every token."""
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=max_tokens, temperature=0.0, logprobs=0, prompt_logprobs=0)
        asked = [{"prompt_token_ids": tokens} for tokens in prompts]
        scored = []
        for prompt, output in zip(prompts, self._llm.generate(asked, parameters, use_tqdm=False), strict=True):
            completion = output.outputs[0]
            tokens = [*prompt, *completion.token_ids]
            by_token = [*output.prompt_logprobs[1:], *completion.logprobs]
            numbers = [of[token].logprob for of, token in zip(by_token, tokens[1:], strict=True)]
            scored.append(ScoredText(tokens, len(prompt), numbers))
        return scored

    def checksum(self) -> str:
        of_workers = self._llm.collective_rpc("checksum_of_weights")
        return hashlib.sha256("\n".join(of_workers).encode()).hexdigest()
