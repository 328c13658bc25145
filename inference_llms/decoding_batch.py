"""The rows of a batch that are decoded together: admitted, stepped a token at a time, dropped when ended."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

# Ended rows are dropped once they are this share of the batch: dropping copies the whole cache.
ENDED_SHARE = 0.25


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

    def join(self, other: "RoomyLayer") -> None:
        """Put the rows of `other` below these; both end at the same column."""
        self.keys = _stack_right(self.keys, other.keys)
        self.values = _stack_right(self.values, other.values)
        self.room_keys = self.room_values = None


def _with_room(kept: Tensor, new: Tensor, past: int, room: int) -> Tensor:
    batch, heads, _, width = new.shape
    roomy = new.new_empty(batch, heads, room, width)
    if past:
        roomy[..., :past, :] = kept
    return roomy


def _stack_right(upper: Tensor, lower: Tensor) -> Tensor:
    columns = max(upper.shape[2], lower.shape[2])
    # Zeros rather than whatever is in memory: a NaN under the mask would still spoil the sum of values.
    stacked = upper.new_zeros(len(upper) + len(lower), upper.shape[1], columns, upper.shape[3])
    stacked[: len(upper), :, columns - upper.shape[2] :] = upper
    stacked[len(upper) :, :, columns - lower.shape[2] :] = lower
    return stacked


class DecodingBatch:
    """Rows padded on the left, their cache of keys and values, and the mask that hides the padding."""

    def __init__(self, model: PreTrainedModel):
        self.rows: list[Row] = []
        self._model = model
        self._cache: Cache | None = None
        self._mask: Tensor | None = None

    def admit(self, rows: list[Row]) -> Tensor:
        """Add rows, run their prompts, and return the logits (row, token) of their first new token."""
        columns = max(len(row.prompt) for row in rows)
        padding = [columns - len(row.prompt) for row in rows]
        # Any token serves as padding, since none sees it; not every tokenizer has one for that.
        tokens = [[0] * pad + row.prompt for pad, row in zip(padding, rows, strict=True)]
        mask = torch.arange(columns) >= torch.tensor(padding)[:, None]
        cache = Cache(layer_class_to_replicate=RoomyLayer)
        logits = self._forward(torch.tensor(tokens), mask, (mask.cumsum(1) - 1).clamp(min=0), cache)
        if self._cache is None:
            self._cache, self._mask = cache, mask
        else:
            for layer, other in zip(self._cache.layers, cache.layers, strict=True):
                layer.join(other)
            both = max(columns, self._mask.shape[1])
            self._mask = torch.cat(
                [torch.nn.functional.pad(part, (both - part.shape[1], 0)) for part in (self._mask, mask)]
            )
        self.rows = self.rows + rows
        return logits

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
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()


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
