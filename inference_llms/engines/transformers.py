"""Completions from Hugging Face transformers: for machines without a GPU or without vLLM."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from inference_llms.engines.decoding_batch import ENDED_SHARE, DecodingBatch, Row, next_tokens
from inference_llms.engines.engine import (
    CutOff,
    Sampling,
    cache_bytes_per_token,
    checkpoint_dtype,
    context_length,
    dtype_in_transformers,
    tokens_of_prompts,
)
from inference_llms.engines.model_loading import load_config, load_model, model_without_weights, refusals_in_one_line
from utils.errors import UserError
from utils.transformers_classes import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

MOST_ROWS = 256
CACHE_BYTES_ON_CPU = 2 * 2**30
CACHE_SHARE_OF_FREE_GPU = 0.6
TOKENS_BETWEEN_STOP_CHECKS = 8
# Below this, a processor's cores wait for each other longer than they compute. With a million parameters on two
# idle cores, two threads gave 3,900 tokens a second and one 2,600; beside another program 600 and 2,600.
PARAMETERS_WORTH_THREADS = 20_000_000


class TransformersEngine:
    """Any causal language model with attention that transformers knows, on the GPUs there are, else on the CPU.

    Weights are in `dtype_in_transformers`. Prompts run in one batch; a completion leaves it when it ends, and a
    waiting prompt takes its place. A greedy completion does not depend on the prompts beside it (but for
    rounding: sums of another shape may differ in the last bit and turn a tie); one drawn at a
    temperature depends on the prompt's position in the call as well.
    """

    def __init__(self, model_folder: Path, has_weights: bool = True, engine_dtype: str = "float32"):
        """Load the model, or one of its shape with arbitrary weights where the folder has none. Raises UserError for a
        folder that transformers cannot load."""
        on_gpu = torch.cuda.device_count() > 0
        with refusals_in_one_line(model_folder, "transformers"):
            config = load_config(model_folder)
            dtype = dtype_in_transformers(checkpoint_dtype(config), engine_dtype)
            self._tokenizer = AutoTokenizer.from_pretrained(model_folder, trust_remote_code=False)
            if has_weights:
                # On GPUs, accelerate spreads a model that is too large for one over all.
                model = load_model(model_folder, dtype=dtype, device_map="auto" if on_gpu else None)
            else:
                model = model_without_weights(model_folder, config, dtype, "cuda" if on_gpu else "cpu")
        self._folder = model_folder
        self._model: PreTrainedModel | None = model.eval()
        self._threads = 1 if model.num_parameters() < PARAMETERS_WORTH_THREADS else torch.get_num_threads()
        self._context = context_length(config)
        self._end_tokens = end_tokens(self._tokenizer, model)

    def generate(self, prompts: Sequence[str], sampling: Sampling) -> Iterator[tuple[int, str]]:
        """Complete all `prompts`, yielding (position in `prompts`, completion) as each is done.

        Raises UserError where the model computes NaN or infinity for a prompt.
        """
        waiting = []
        for position, prompt in enumerate(tokens_of_prompts(self._tokenizer, prompts, self._context)):
            if prompt is None:
                yield position, CutOff()
            else:
                room = self._context - len(prompt)
                waiting.append(Row(position, prompt, min(sampling.max_tokens, room)))
        # Taken from the end, so the longest first: a batch that is too large for the memory fails at
        # once rather than after hours, and prompts of like length share the padding.
        waiting.sort(key=lambda row: row.longest)
        tokens_that_fit = _tokens_that_fit(self._model)
        batch = DecodingBatch(self._model)
        while waiting or batch.rows:
            admitted = [waiting.pop() for _ in range(_free_places(batch.rows, waiting, tokens_that_fit))]
            with _computing(self._threads):
                logits = batch.admit(admitted) if admitted else batch.step()
                if admitted:
                    self._check_finite(logits)
                rows = admitted or batch.rows
                tokens = next_tokens(logits, rows, sampling.temperature, sampling.top_p)
            for row, token in zip(rows, tokens, strict=True):
                row.new.append(token)
                if not row.ended and self._has_ended(row, sampling):
                    row.ended = True
                    yield row.position, self._completion(row, sampling)
            with _computing(self._threads):
                batch.drop_ended()

    def close(self) -> None:
        """Free the model's memory."""
        self._model = None
        gc.collect()
        if torch.cuda.device_count() > 0:
            torch.cuda.empty_cache()

    def _check_finite(self, logits: torch.Tensor) -> None:
        # The largest only: a model may rule a token out with minus infinity.
        if not logits.amax(-1).isfinite().all():
            raise UserError(
                f"{self._folder}: the model computes NaN or infinity in {self._model.dtype}, so its weights are broken "
                "or too large for that; copy, download or merge it again"
            )

    def _has_ended(self, row: Row, sampling: Sampling) -> bool:
        if row.new[-1] in self._end_tokens or len(row.new) == row.most_new_tokens:
            return True
        if not sampling.stop or len(row.new) % TOKENS_BETWEEN_STOP_CHECKS:
            return False
        # A token adds a byte at least, so these hold the stop, and one more in front of it, because some
        # tokenizers drop the space that a text begins with.
        tail = max(len(stop.encode()) for stop in sampling.stop) + TOKENS_BETWEEN_STOP_CHECKS + 1
        text = _decode(self._tokenizer, row.new[-tail:])
        return any(stop in text for stop in sampling.stop)

    def _completion(self, row: Row, sampling: Sampling) -> str:
        new = row.new[:-1] if row.new[-1] in self._end_tokens else row.new
        before = _decode(self._tokenizer, row.prompt)
        whole = _decode(self._tokenizer, row.prompt + new)
        text = whole[len(before) :] if whole.startswith(before) else _decode(self._tokenizer, new)
        # Bytes of a character that max_tokens cut in two.
        text = text.rstrip("\N{REPLACEMENT CHARACTER}")
        completion = cut_at_stop(text, sampling.stop)
        ended = row.new[-1] in self._end_tokens or len(row.new) < row.most_new_tokens or completion != text
        return completion if ended else CutOff(completion)


@contextmanager
def _computing(threads: int) -> Iterator[None]:
    """No gradients, and this many threads: for a stretch without yields, which would leak both to the caller."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """`text` up to the stop that is complete first in it, as vLLM cuts; of those complete at the same
    place, the first in `stops`."""
    found = [(place + len(stop), order, place) for order, stop in enumerate(stops) if (place := text.find(stop)) >= 0]
    return text[: min(found)[2]] if found else text


def _decode(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def end_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> set[int]:
    stated = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(stated if isinstance(stated, list) else [stated])} - {None}


def _tokens_that_fit(model: PreTrainedModel) -> int:
    """How many tokens' keys and values the memory may hold."""
    bytes_per_token = cache_bytes_per_token(model.config, model.dtype.itemsize)
    gpus = range(torch.cuda.device_count())
    if not gpus:
        return CACHE_BYTES_ON_CPU // bytes_per_token
    return int(CACHE_SHARE_OF_FREE_GPU * sum(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus) / bytes_per_token)


def _free_places(rows: Sequence[Row], waiting: Sequence[Row], tokens_that_fit: int) -> int:
    """How many of `waiting` to admit beside `rows` now: none while only few places are free."""
    if not waiting:
        return 0
    longest = max(row.longest for row in [*rows, waiting[-1]])
    places = min(max(tokens_that_fit // longest, 1), MOST_ROWS)
    free = places - len(rows)
    return min(free, len(waiting)) if not rows or free >= ENDED_SHARE * places else 0
