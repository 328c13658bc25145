"""Check that a vLLM engine computes with its current weights.

The engine completes a few prompts. transformers, which keeps no second copy of the weights, then scores the same
tokens with the same weights on the CPU, in float32 and in the engine's dtype. The distance between these two is
rounding, and the engine may be twice as far from float32. A layer with old weights is farther away. In
SmolLM2-135M, rounding to bfloat16 moves log-probabilities by 0.03, one wrong attention output by 0.13 to 2, and an old
head by 9.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from inference_llms.engines.engine import ScoredText, Weights
from inference_llms.engines.model_loading import (
    context_length,
    load_config,
    load_model,
    model_without_weights,
    open_tokenizer,
    refusals_in_one_line,
    tokens_of_prompts,
)
from utils.errors import UserError
from utils.machine import available_memory

if TYPE_CHECKING:
    from inference_llms.engines.vllm import VllmEngine

PROMPTS = (
    "What is the capital of France?",
    "Question: Tom has 3 apples and buys 4 more. How many apples does he have?\nAnswer:",
    "def add(a, b):\n",
)
NEW_TOKENS = 16
TIMES_ROUNDING = 2.0
MIN_TOLERANCE = 0.01
USUAL_ROUNDING = 0.05  # if the model in float32 does not fit into memory


def prove(engine: "VllmEngine", folder: Path, weights: Weights) -> None:
    """Put weights into an engine opened on `folder`, and raise UserError unless it computes with them."""
    with refusals_in_one_line(folder, "transformers"):
        config = load_config(folder)
        tokenizer = open_tokenizer(folder)
        empty = model_without_weights(folder, config, "float32", "meta")
    exact_dtype = _dtype_that_fits(empty, engine.dtype)
    prompts = tokens_of_prompts(tokenizer, PROMPTS, context_length(config) - NEW_TOKENS)
    engine.replace_weights(weights)
    texts = engine.complete_with_scores([tokens for tokens in prompts if tokens is not None], NEW_TOKENS)
    with refusals_in_one_line(folder, "transformers"):
        model = load_model(None, type(empty), config=config, state_dict=dict(weights), dtype=exact_dtype).eval()
    exact = [_log_probabilities(model, text.tokens) for text in texts]
    rounded = None
    if exact_dtype == "float32":
        _round_parameters(model, engine.dtype)
        rounded = [_log_probabilities(model, text.tokens) for text in texts]
    check_against(texts, exact, rounded)


def check_against(texts: Sequence[ScoredText], exact: Sequence[Tensor], rounded: Sequence[Tensor] | None) -> None:
    """Raise UserError if an engine's log-probabilities, or its choice of tokens, are farther from the exact ones
    than rounding explains. Tensors: [token after the first, vocabulary]. `rounded` None: not measured."""
    tokens = [torch.tensor(text.tokens[1:])[:, None] for text in texts]

    def scores_of_tokens(scores: Sequence[Tensor]) -> list[Tensor]:
        return [row.gather(1, token)[:, 0] for row, token in zip(scores, tokens, strict=True)]

    scored, expected = [torch.tensor(text.log_probabilities) for text in texts], scores_of_tokens(exact)
    rounding = USUAL_ROUNDING if rounded is None else _mean_distance(scores_of_tokens(rounded), expected)
    tolerance = TIMES_ROUNDING * rounding + MIN_TOLERANCE
    likeliest = [scores[text.prompt_length - 1 :].amax(1) for text, scores in zip(texts, exact, strict=True)]
    chosen = [scores[text.prompt_length - 1 :] for text, scores in zip(texts, expected, strict=True)]
    distances = {
        "log-probabilities": _mean_distance(scored, expected),
        "completions": _mean_distance(chosen, likeliest),
    }
    for name, distance in distances.items():
        if not distance <= tolerance:  # also if it is NaN
            raise UserError(
                f"--backend vllm: with the same weights, vLLM computes other {name} than transformers "
                f"(mean distance {distance:.3f}, tolerance {tolerance:.3f}); search with --backend transformers"
            )


def _dtype_that_fits(model: PreTrainedModel, dtype: torch.dtype) -> str:
    """float32 if a float32 model and the checkpoint's tensors fit into memory, else the engine's dtype. Raises
    UserError if neither fits."""
    parameters = model.num_parameters()
    for model_dtype in (torch.float32, dtype):
        needed = parameters * (model_dtype.itemsize + dtype.itemsize)
        if needed < available_memory():
            return str(model_dtype).removeprefix("torch.")
    raise UserError(
        f"--backend vllm: checking vLLM needs {needed / 1e9:.0f} GB of memory, and {available_memory() / 1e9:.0f} are "
        "free; free some, or search with --backend transformers"
    )


def _log_probabilities(model: PreTrainedModel, tokens: Sequence[int]) -> Tensor:
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, :-1]
    return logits.float().log_softmax(-1)


def _round_parameters(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Round as loading a checkpoint of that dtype does: buffers, such as rotary frequencies, stay."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _mean_distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return fmean(torch.cat([(a - b).abs() for a, b in zip(one, other, strict=True)]).tolist())
