"""Completions from Hugging Face transformers, for machines without a GPU or without vLLM."""

import gc
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from inference_llms.engines.decoding_batch import ENDED_SHARE, BatchRow, DecodingBatch, next_tokens
from inference_llms.engines.engine import NO_ROOM, Chat, Completion, Likelihood, Prompt, Sampling, Weights
from inference_llms.engines.model_loading import (
    cache_bytes_per_token,
    checkpoint_dtype,
    context_length,
    dtype_in_transformers,
    generation_config,
    load_config,
    load_model,
    model_without_weights,
    open_tokenizer,
    refusals_in_one_line,
    tokens_of_prompts,
)
from utils.errors import UserError

MAX_ROWS = 256
CACHE_BYTES_ON_CPU = 2 * 2**30
CACHE_SHARE_OF_FREE_GPU = 0.6
TOKENS_BETWEEN_STOP_CHECKS = 8
# Smaller models run in one thread: cores would wait for each other longer than they compute. With a million parameters
# on two idle cores, two threads gave 3,900 tokens a second and one 2,600; beside another program 600 and 2,600.
PARAMETERS_WORTH_THREADS = 20_000_000
# Texts scored in a batch, whose logits are all in memory. One by one on the CPU, where a batch saves little: so that
# likelihoods do not depend on the other texts, and equal lm-evaluation-harness's to the last bit.
SCORED_AT_ONCE_ON_GPU = 16


class TransformersEngine:
    """Any causal language model with attention that transformers supports, on GPUs if available, else on the CPU.

    Weights are in `dtype_in_transformers`. Prompts run in one batch; a completion leaves it when it ends, and a
    waiting prompt takes its row. A greedy completion does not depend on the other prompts, except for rounding:
    in a batch of another shape, sums may differ in the last bit and break a tie differently. A completion drawn at a
    temperature also depends on the prompt's position in the call.
    """

    def __init__(self, model_folder: Path, engine_dtype: str = "float32", has_weights: bool = True):
        """Load the model, or one of its shape with arbitrary weights if `has_weights` is False. Raises UserError for a
        folder that transformers cannot load."""
        on_gpu = torch.cuda.device_count() > 0
        with refusals_in_one_line(model_folder, "transformers"):
            config = load_config(model_folder)
            dtype = dtype_in_transformers(checkpoint_dtype(config), engine_dtype)
            self.tokenizer = open_tokenizer(model_folder)
            if has_weights:
                # On GPUs, accelerate spreads a model that is too large for one over all.
                model = load_model(model_folder, dtype=dtype, device_map="auto" if on_gpu else None)
            else:
                model = model_without_weights(model_folder, config, dtype, "cuda" if on_gpu else "cpu")
        self._folder = model_folder
        self._model: PreTrainedModel | None = model.eval()
        self._threads = 1 if model.num_parameters() < PARAMETERS_WORTH_THREADS else torch.get_num_threads()
        self.context = context_length(config)
        self.longest_scored = self.context + 1  # the last token is not part of the model's input
        self._end_tokens = self._all_end_tokens()

    def complete(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
        """Complete all `prompts`, yielding (position in `prompts`, completion) as each ends.

        Raises UserError if the model computes NaN or infinity for a prompt.
        """
        waiting = []
        for position, prompt in enumerate(tokens_of_prompts(self.tokenizer, prompts, self.context)):
            if prompt is None:
                yield position, NO_ROOM
            else:
                waiting.append(BatchRow(position, prompt, min(sampling.max_tokens, self.context - len(prompt))))
        # Rows are taken from the end, so the longest run first: a batch that is too large for the memory fails
        # immediately rather than after hours, and prompts of similar length need little padding.
        waiting.sort(key=lambda row: row.max_length)
        tokens_that_fit = self._tokens_that_fit()
        has_tokens = bool(prompts) and not isinstance(prompts[0], str | Chat)
        batch = DecodingBatch(self._model)
        while waiting or batch.rows:
            admitted = [waiting.pop() for _ in range(_free_rows(batch.rows, waiting, tokens_that_fit))]
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
                    yield row.position, self._completion(row, sampling, decode_alone=has_tokens)
            with _computing(self._threads):
                batch.drop_ended()

    def log_likelihoods(self, texts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Iterator[tuple[int, Likelihood]]:
        """The likelihood of the second part of each text given the first, as each is computed.

        The model's input is a text without its last token; texts with the same input (the choices of a question that
        are one token long) share one run."""
        by_input: dict[tuple[int, ...], list[int]] = {}
        for position, (before, after) in enumerate(texts):
            by_input.setdefault((*before, *after)[:-1], []).append(position)
        # The longest first, as in `complete`.
        inputs = sorted(by_input, key=len, reverse=True)
        at_once = 1 if self._model.device.type == "cpu" else SCORED_AT_ONCE_ON_GPU
        for first in range(0, len(inputs), at_once):
            batch = inputs[first : first + at_once]
            for tokens, logits in zip(batch, self._logits(batch), strict=True):
                for position in by_input[tokens]:
                    yield position, _likelihood(logits, texts[position][1])

    def _logits(self, inputs: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        """The logits [token, vocabulary] of each input. Inputs are padded on the right, which attention to earlier
        tokens does not see."""
        with _computing(self._threads):
            padded = pad_sequence([torch.tensor(tokens) for tokens in inputs], batch_first=True)
            logits = self._model(input_ids=padded.to(self._model.device), use_cache=False).logits
        for row, tokens in zip(logits, inputs, strict=True):
            yield row[: len(tokens)]

    @torch.no_grad()
    def replace_weights(self, weights: Weights) -> None:
        """Replace the weights, on one GPU or on the CPU."""
        state = self._model.state_dict(keep_vars=True)
        filled = set()
        for name, tensor in weights:
            if name not in state or state[name].shape != tensor.shape:
                raise UserError(
                    f"{self._folder}: transformers has no tensor {name} of this shape to replace; choose --backend vllm"
                )
            state[name].copy_(tensor)
            filled.add(state[name].data_ptr())
        for name, tensor in state.items():
            if tensor.data_ptr() not in filled:  # tied tensors share their memory with a filled one
                raise UserError(f"{self._folder}: the models lack tensor {name}; copy or download them again")

    def take_tokenizer(self, folder: Path) -> None:
        self.tokenizer = open_tokenizer(folder)
        self._model.generation_config = generation_config(folder)
        self._end_tokens = self._all_end_tokens()

    def checksum(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in sorted(self._model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().cpu().view(torch.uint8).numpy())
        return digest.hexdigest()

    def close(self) -> None:
        """Free the model's memory."""
        self._model = None
        gc.collect()
        if torch.cuda.device_count() > 0:
            torch.cuda.empty_cache()

    def _all_end_tokens(self) -> set[int]:
        configured = self._model.generation_config.eos_token_id
        return {self.tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])} - {None}

    def _tokens_that_fit(self) -> int:
        """The number of tokens whose keys and values may be kept in memory."""
        bytes_per_token = cache_bytes_per_token(self._model.config, self._model.dtype.itemsize)
        gpus = range(torch.cuda.device_count())
        if not gpus:
            return CACHE_BYTES_ON_CPU // bytes_per_token
        return int(CACHE_SHARE_OF_FREE_GPU * sum(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus) / bytes_per_token)

    def _check_finite(self, logits: torch.Tensor) -> None:
        # Only the largest: a model may rule a token out with minus infinity.
        if not logits.amax(-1).isfinite().all():
            raise UserError(
                f"{self._folder}: the model computes NaN or infinity in {self._model.dtype}, so its weights are broken "
                "or too large for that; copy, download or merge it again"
            )

    def _has_ended(self, row: BatchRow, sampling: Sampling) -> bool:
        if row.new[-1] in self._end_tokens or len(row.new) == row.max_new_tokens:
            return True
        if not sampling.stop or len(row.new) % TOKENS_BETWEEN_STOP_CHECKS:
            return False
        # Each token adds a byte or more, so this many tokens hold the stop and one more token before it, because some
        # tokenizers drop a leading space.
        tail = max(len(stop.encode()) for stop in sampling.stop) + TOKENS_BETWEEN_STOP_CHECKS + 1
        text = self._decode(row.new[-tail:])
        return any(stop in text for stop in sampling.stop)

    def _completion(self, row: BatchRow, sampling: Sampling, decode_alone: bool) -> Completion:
        ended_itself = row.new[-1] in self._end_tokens
        new = row.new[:-1] if ended_itself else row.new
        if decode_alone:
            text = self._decode(new)
        else:
            before, whole = self._decode(row.prompt), self._decode(row.prompt + new)
            text = whole[len(before) :] if whole.startswith(before) else self._decode(new)
        # max_tokens may cut a character's bytes in two.
        text = text.rstrip("\N{REPLACEMENT CHARACTER}")
        cut = cut_at_stop(text, sampling.stop)
        has_ended = ended_itself or len(row.new) < row.max_new_tokens or cut != text
        return Completion(cut, self._tokens_up_to_stop(row, sampling), not has_ended)

    def _tokens_up_to_stop(self, row: BatchRow, sampling: Sampling) -> int:
        """The number of new tokens, without those after a stop, which is looked for only now and then."""
        tokens = len(row.new)
        while tokens and any(stop in self._decode(row.new[: tokens - 1]) for stop in sampling.stop):
            tokens -= 1
        return tokens

    def _decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@contextmanager
def _computing(threads: int) -> Iterator[None]:
    """Turn gradients off and use this many threads. Do not yield inside: the caller would get both settings."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """`text` up to the stop that ends first, as vLLM cuts it; if several end at the same position, up to the first of
    them in `stops`."""
    ends = [(start + len(stop), order, start) for order, stop in enumerate(stops) if (start := text.find(stop)) >= 0]
    return text[: min(ends)[2]] if ends else text


def _likelihood(logits: torch.Tensor, continuation: Sequence[int]) -> Likelihood:
    """The likelihood of the tokens that the last of these logits [token, vocabulary] predict."""
    tokens = torch.tensor(continuation, device=logits.device)
    scores = logits[-len(tokens) :].float().log_softmax(-1)
    log_probabilities = scores.gather(1, tokens[:, None])
    return Likelihood(float(log_probabilities.sum()), bool((scores.argmax(-1) == tokens).all()))


def _free_rows(rows: Sequence[BatchRow], waiting: Sequence[BatchRow], tokens_that_fit: int) -> int:
    """The number of `waiting` rows to add to `rows` now: none while few places are free."""
    if not waiting:
        return 0
    max_length = max(row.max_length for row in [*rows, waiting[-1]])
    places = min(max(tokens_that_fit // max_length, 1), MAX_ROWS)
    free = places - len(rows)
    return min(free, len(waiting)) if not rows or free >= ENDED_SHARE * places else 0
