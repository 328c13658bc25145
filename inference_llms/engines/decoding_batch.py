"""The rows of a batch that are decoded together: admitted, stepped a token at a time, dropped when ended."""

import inspect
import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from utils.transformers_classes import Cache, PreTrainedModel

# Ended rows are dropped once they are this share of the batch: dropping copies the whole cache.
ENDED_SHARE = 0.25
# Prompts run in pieces of so many tokens: what lies between two layers then stays in a processor's cache. With a
# million parameters 872 prompts of 148 tokens took 15.6 s in one piece, 10.0 s at 4,096 tokens, 8.6 s at 1,024.
TOKENS_AT_ONCE = 1024
TOKENS_AT_ONCE_ON_GPU = 65536


class Row:
    """One prompt, the tokens generated for it, and the source of randomness if they are drawn."""

    def __init__(self, position: int, prompt: list[int], most_new_tokens: int):
        self.position = position
        self.prompt = prompt
        self.most_new_tokens = most_new_tokens
        self.new: list[int] = []
        self.ended = False
        self.random = random.Random(position)

    @property
    def longest(self) -> int:
        """The number of tokens, prompt and completion, that this row may come to."""
        return len(self.prompt) + self.most_new_tokens


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer, with spare room at the end.

    The layer of transformers copies everything to append one token; with a small model that takes most
    of the time.
    """

    room_keys: Tensor | None = None
    room_values: Tensor | None = None

    @classmethod
    def of(cls, keys: Tensor, values: Tensor) -> "RoomyLayer":
        layer = cls()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        return layer

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        past = self.get_seq_length()
        length = past + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.room_keys is None or length > self.room_keys.shape[-2]:
            room = length + max(64, length // 4)
            self.room_keys = _with_room(self.keys, key_states, past, room)
            self.room_values = _with_room(self.values, value_states, past, room)
        self.room_keys[..., past:length, :] = key_states
        self.room_values[..., past:length, :] = value_states
        self.keys = self.room_keys[..., :length, :]
        self.values = self.room_values[..., :length, :]
        return self.keys, self.values

    def keep(self, rows: Tensor, first_column: int) -> None:
        """Keep these rows of the batch, without the columns before `first_column`."""
        rows = rows.to(self.keys.device)
        self.keys = self.keys[:, :, first_column:].index_select(0, rows)
        self.values = self.values[:, :, first_column:].index_select(0, rows)
        self.room_keys = self.room_values = None

    def repeated(self, rows: int) -> "RoomyLayer":
        """A layer with this one's only row so many times."""
        return RoomyLayer.of(self.keys.expand(rows, -1, -1, -1), self.values.expand(rows, -1, -1, -1))


def stack_layers(layers: Sequence[RoomyLayer]) -> RoomyLayer:
    """The rows of all layers, one below the other; all end at the same column."""
    return RoomyLayer.of(_stack_right([x.keys for x in layers]), _stack_right([x.values for x in layers]))


def _with_room(kept: Tensor, new: Tensor, past: int, room: int) -> Tensor:
    batch, heads, _, width = new.shape
    roomy = new.new_empty(batch, heads, room, width)
    if past:
        roomy[..., :past, :] = kept
    return roomy


def _stack_right(parts: Sequence[Tensor]) -> Tensor:
    """Tensors [rows, heads, columns, width] one below the other, their last columns aligned."""
    if len(parts) == 1:
        return parts[0]
    columns = max(part.shape[2] for part in parts)
    # Zeros rather than whatever is in memory: a NaN under the mask would still spoil the sum of values.
    return torch.cat([torch.nn.functional.pad(part, (0, 0, columns - part.shape[2], 0)) for part in parts])


class DecodingBatch:
    """Rows padded on the left, their cache of keys and values, and the mask that hides the padding."""

    def __init__(self, model: PreTrainedModel):
        self.rows: list[Row] = []
        self._model = model
        # Versions of transformers before 5.24 call it past_key_values, those from 5.40 on no longer do.
        named = inspect.signature(model.forward).parameters
        self._cache_argument = "cache" if "cache" in named else "past_key_values"
        self._cache: Cache | None = None
        self._mask: Tensor | None = None
        # Windows and chunks of attention count columns: padding behind the shared beginning would shift them.
        config = model.config.get_text_config()
        kinds = ("sliding_window", "attention_chunk_size")
        self._may_share = all(getattr(config, kind, None) is None for kind in kinds)

    def admit(self, rows: list[Row]) -> Tensor:
        """Add rows, run their prompts, and return the logits (row, token) of their first new token.

        What all the prompts begin with is run once. The rest runs in pieces that stay in a processor's cache; rows of
        like length side by side share the padding.
        """
        shared = _common_beginning([row.prompt for row in rows]) if self._may_share else 0
        prefix = self._run_prefix(rows[0].prompt[:shared]) if shared else None
        at_once = TOKENS_AT_ONCE if self._model.device.type == "cpu" else TOKENS_AT_ONCE_ON_GPU
        run = [self._run_rest(piece, shared, prefix) for piece in _pieces(rows, shared, at_once)]
        logits, masks, caches = map(list, zip(*run, strict=True))
        if self._cache is not None:
            masks, caches = [self._mask, *masks], [self._cache, *caches]
        columns = max(mask.shape[1] for mask in masks)
        self._mask = torch.cat([torch.nn.functional.pad(mask, (columns - mask.shape[1], 0)) for mask in masks])
        self._cache = Cache(layers=[stack_layers(of) for of in zip(*(cache.layers for cache in caches), strict=True)])
        self.rows = self.rows + rows
        return torch.cat(logits)

    def _run_prefix(self, tokens: list[int]) -> Cache:
        cache = Cache(layer_class_to_replicate=RoomyLayer)
        length = len(tokens)
        self._forward(torch.tensor([tokens]), torch.ones(1, length, dtype=bool), torch.arange(length)[None], cache)
        return cache

    def _run_rest(self, rows: Sequence[Row], shared: int, prefix: Cache | None) -> tuple[Tensor, Tensor, Cache]:
        """Logits, mask and cache of rows, whose first `shared` tokens are in `prefix`. Padding stands behind them."""
        columns = max(len(row.prompt) for row in rows) - shared
        padding = [columns + shared - len(row.prompt) for row in rows]
        # Any token serves as padding, since none sees it; not every tokenizer has one for that.
        tokens = torch.tensor([[0] * pad + row.prompt[shared:] for pad, row in zip(padding, rows, strict=True)])
        mask = torch.arange(columns) >= torch.tensor(padding)[:, None]
        mask = torch.nn.functional.pad(mask, (shared, 0), value=True)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, shared:]
        cache = Cache(layer_class_to_replicate=RoomyLayer)
        if prefix is not None:
            cache = Cache(layers=[layer.repeated(len(rows)) for layer in prefix.layers])
        return self._forward(tokens, mask, positions, cache), mask, cache

    def step(self) -> Tensor:
        """Run the last token of every row and return the logits (row, token) of the next."""
        tokens = torch.tensor([[row.new[-1]] for row in self.rows])
        positions = torch.tensor([[len(row.prompt) + len(row.new) - 1] for row in self.rows])
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=True)
        return self._forward(tokens, self._mask, positions, self._cache)

    def drop_ended(self) -> None:
        """Drop the rows that have ended, if they are many enough to be worth it."""
        kept = [index for index, row in enumerate(self.rows) if not row.ended]
        if not kept:
            self.rows, self._cache, self._mask = [], None, None
        elif len(self.rows) - len(kept) >= ENDED_SHARE * len(self.rows):
            indices = torch.tensor(kept)
            mask = self._mask[indices]
            first_column = int(mask.any(0).int().argmax())
            self._mask = mask[:, first_column:]
            for layer in self._cache.layers:
                layer.keep(indices, first_column)
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


def _common_beginning(prompts: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with, short of any whole prompt: each has a last token to be run."""
    first, last = min(prompts), max(prompts)
    common = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return min(common, min(map(len, prompts)) - 1) if len(prompts) > 1 else 0


def _pieces(rows: Sequence[Row], shared: int, at_once: int) -> Iterator[Sequence[Row]]:
    """Rows in their order, in pieces of `at_once` tokens at most, padding included and shared ones not, or one row."""
    start = 0
    for end in range(1, len(rows) + 1):
        longest = max(len(row.prompt) for row in rows[start : end + 1]) - shared
        if end == len(rows) or (end + 1 - start) * longest > at_once:
            yield rows[start:end]
            start = end


def next_tokens(logits: Tensor, rows: Sequence[Row], temperature: float, top_p: float) -> list[int]:
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
