"""A batch of completions that grow a token at a time: admit rows, step, drop the ended ones."""

import inspect
import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

# Ended rows are dropped once they are this share of the batch: dropping copies the whole cache.
ENDED_SHARE = 0.25
# Prompts run in pieces of this many tokens, so that the activations between two layers stay in a processor's cache.
# With a million parameters 872 prompts of 148 tokens took 15.6 s in one piece, 10.0 s at 4,096 tokens, 8.6 s at 1,024.
TOKENS_AT_ONCE = 1024
TOKENS_AT_ONCE_ON_GPU = 65536


class BatchRow:
    """One prompt, the tokens generated for it, and its source of randomness for sampling."""

    def __init__(self, position: int, prompt: list[int], max_new_tokens: int):
        self.position = position
        self.prompt = prompt
        self.max_new_tokens = max_new_tokens
        self.new: list[int] = []
        self.ended = False
        self.random = random.Random(position)

    @property
    def max_length(self) -> int:
        """The largest number of tokens, prompt and completion, that this row can reach."""
        return len(self.prompt) + self.max_new_tokens


class DecodingBatch:
    """Rows padded on the left, their cache of keys and values, and the mask that hides the padding."""

    def __init__(self, model: PreTrainedModel):
        self.rows: list[BatchRow] = []
        self._model = model
        # transformers renames past_key_values to cache in 5.24, and drops the old name in 5.40.
        parameters = inspect.signature(model.forward).parameters
        self._cache_argument = "cache" if "cache" in parameters else "past_key_values"
        self._cache: Cache | None = None
        self._mask: Tensor | None = None
        # Windows and chunks of attention count columns: padding behind the shared beginning would shift them.
        config = model.config.get_text_config()
        self._may_share = all(
            getattr(config, kind, None) is None for kind in ("sliding_window", "attention_chunk_size")
        )

    def admit(self, rows: list[BatchRow]) -> Tensor:
        """Add rows, run their prompts, and return the logits (row, token) of their first new token.

        The common beginning of all prompts runs once. The rest runs in pieces that fit into a processor's cache. Sort
        rows by length to reduce the padding.
        """
        shared = _common_beginning([row.prompt for row in rows]) if self._may_share else 0
        prefix = self._run_prefix(rows[0].prompt[:shared]) if shared else None
        at_once = TOKENS_AT_ONCE if self._model.device.type == "cpu" else TOKENS_AT_ONCE_ON_GPU
        pieces = [self._run_rest(piece, shared, prefix) for piece in _pieces(rows, shared, at_once)]
        logits, masks, caches = map(list, zip(*pieces, strict=True))
        if self._cache is not None:
            masks, caches = [self._mask, *masks], [self._cache, *caches]
        columns = max(mask.shape[1] for mask in masks)
        self._mask = torch.cat([pad(mask, (columns - mask.shape[1], 0)) for mask in masks])
        self._cache = Cache(layers=[_stack(layers) for layers in zip(*(cache.layers for cache in caches), strict=True)])
        self.rows = self.rows + rows
        return torch.cat(logits)

    def _run_prefix(self, tokens: list[int]) -> Cache:
        cache = Cache(layer_class_to_replicate=DynamicLayer)
        length = len(tokens)
        self._forward(torch.tensor([tokens]), torch.ones(1, length, dtype=bool), torch.arange(length)[None], cache)
        return cache

    def _run_rest(self, rows: Sequence[BatchRow], shared: int, prefix: Cache | None) -> tuple[Tensor, Tensor, Cache]:
        """Logits, mask and cache of rows whose first `shared` tokens are in `prefix`. The padding follows these."""
        columns = max(len(row.prompt) for row in rows) - shared
        padding = [columns + shared - len(row.prompt) for row in rows]
        # Any token serves as padding, since the mask hides it; not every tokenizer has a padding token.
        tokens = torch.tensor([[0] * width + row.prompt[shared:] for width, row in zip(padding, rows, strict=True)])
        mask = pad(torch.arange(columns) >= torch.tensor(padding)[:, None], (shared, 0), value=True)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, shared:]
        cache = Cache(layer_class_to_replicate=DynamicLayer)
        if prefix is not None:
            size = (len(rows), -1, -1, -1)
            cache = Cache(layers=[_layer(x.keys.expand(size), x.values.expand(size)) for x in prefix.layers])
        return self._forward(tokens, mask, positions, cache), mask, cache

    def step(self) -> Tensor:
        """Run the last token of every row and return the logits (row, token) of the next."""
        tokens = torch.tensor([[row.new[-1]] for row in self.rows])
        positions = torch.tensor([[len(row.prompt) + len(row.new) - 1] for row in self.rows])
        self._mask = pad(self._mask, (0, 1), value=True)
        return self._forward(tokens, self._mask, positions, self._cache)

    def drop_ended(self) -> None:
        """Drop the ended rows, once they are a large enough share of the batch."""
        kept = [index for index, row in enumerate(self.rows) if not row.ended]
        if not kept:
            self.rows, self._cache, self._mask = [], None, None
        elif len(self.rows) - len(kept) >= ENDED_SHARE * len(self.rows):
            mask = self._mask[kept]
            first_column = int(mask.any(0).int().argmax())  # columns before it are padding in every kept row
            self._mask = mask[:, first_column:]
            for layer in self._cache.layers:
                layer.keys = layer.keys[:, :, first_column:][kept]
                layer.values = layer.values[:, :, first_column:][kept]
            self.rows = [self.rows[index] for index in kept]

    def _forward(self, tokens: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        device = self._model.device
        output = self._model(
            input_ids=tokens.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_argument: cache},
        )
        return output.logits[:, -1].float()


def _layer(keys: Tensor, values: Tensor) -> DynamicLayer:
    layer = DynamicLayer()
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    return layer


def _stack(layers: Sequence[DynamicLayer]) -> DynamicLayer:
    """The rows of all layers, stacked; all end at the same column."""
    columns = max(layer.keys.shape[2] for layer in layers)
    # Zeros, because a NaN left in memory would spoil the sum of values even under the mask.
    keys, values = (
        torch.cat([pad(part, (0, 0, columns - part.shape[2], 0)) for part in parts])
        for parts in zip(*((layer.keys, layer.values) for layer in layers), strict=True)
    )
    return _layer(keys, values)


def _common_beginning(prompts: Sequence[list[int]]) -> int:
    """The number of tokens that all prompts begin with. It excludes each prompt's last token, which must be run."""
    first, last = min(prompts), max(prompts)
    common = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return min(common, min(map(len, prompts)) - 1) if len(prompts) > 1 else 0


def _pieces(rows: Sequence[BatchRow], shared: int, at_once: int) -> Iterator[Sequence[BatchRow]]:
    """Split rows, in order, into pieces of at most `at_once` tokens, padding included and shared tokens not, or of one
    row."""
    start = 0
    for end in range(1, len(rows) + 1):
        longest = max(len(row.prompt) for row in rows[start : end + 1]) - shared
        if end == len(rows) or (end + 1 - start) * longest > at_once:
            yield rows[start:end]
            start = end


def next_tokens(logits: Tensor, rows: Sequence[BatchRow], temperature: float, top_p: float) -> list[int]:
    """The next token of each row: the likeliest at temperature 0, else drawn from the likeliest tokens
    whose probabilities first add up to `top_p`."""
    if temperature == 0:
        return logits.argmax(-1).tolist()
    probabilities, tokens = torch.softmax(logits / temperature, dim=-1).sort(dim=-1, descending=True)
    before = probabilities.cumsum(-1) - probabilities
    ends = torch.where(before < top_p, probabilities, 0.0).cumsum(-1)
    draws = torch.tensor([[row.random.random()] for row in rows], device=ends.device) * ends[:, -1:]
    chosen = torch.searchsorted(ends, draws, right=True).clamp(max=ends.shape[-1] - 1)
    return tokens.gather(-1, chosen).squeeze(-1).tolist()
