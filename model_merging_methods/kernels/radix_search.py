"""Order statistics of any float32 values over many blocks, exactly, in two passes of counting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from model_merging_methods.method import Tensors

_BINS = 1 << 16


class RadixSearch:
    """The `ranks[row]`-th smallest values of each row, counted from 0.

    The first pass counts the high halves of the values' bit patterns in their order, the second the low halves of the
    values whose high half is a wanted one. In each pass, `add` the `counts` of every block; then `conclude`, until
    `done`. `found` then has the values.
    """

    def __init__(self, ranks: Sequence[Sequence[int]]):
        self._ranks = [list(of_row) for of_row in ranks]
        self._highs: list[list[int]] | None = None
        self.found: list[list[float]] = [[] for _ in ranks]
        self.done = not any(self._ranks)
        self._totals: np.ndarray | int = 0

    def counts(self, values: Tensor) -> Tensor:
        """This pass's counts of a block's values, float32 [rows, n]: int64 [searches, 65536]."""
        import torch

        counted = []
        for row, of_row in enumerate(values):
            patterns = _ordered(of_row)
            high = patterns >> 16
            if self._highs is None:
                counted.append(torch.bincount(high, minlength=_BINS))
                continue
            for wanted in self._highs[row]:
                counted.append(torch.bincount(patterns[high == wanted] & 0xFFFF, minlength=_BINS))
        return torch.stack(counted)

    def add(self, counts: np.ndarray) -> None:
        self._totals = self._totals + counts

    def conclude(self) -> None:
        totals, self._totals = self._totals, 0
        if self._highs is None:
            places = [[_place(totals[row], rank) for rank in ranks] for row, ranks in enumerate(self._ranks)]
            self._highs = [[place for place, _ in of_row] for of_row in places]
            self._ranks = [[rank for _, rank in of_row] for of_row in places]
            return
        rows = iter(totals)
        for row, (highs, ranks) in enumerate(zip(self._highs, self._ranks, strict=True)):
            lows = [_place(next(rows), rank)[0] for rank in ranks]
            self.found[row] = [_number(high << 16 | low) for high, low in zip(highs, lows, strict=True)]
        self.done = True


def magnitudes_of(x: Tensors) -> Tensor:
    """|δ| of all models: float32 [K, n]."""
    import torch

    return torch.stack([delta.reshape(-1) for delta in x.deltas]).abs()


def sum_of_elected_signs(deltas: Sequence[Tensor], thresholds: Sequence[float]) -> Tensor:
    """The sum over positions of the sign of Σi τi, where τi is δi where |δi| >= its threshold: an integer tensor."""
    trimmed = [delta.where(delta.abs() >= t, 0) for delta, t in zip(deltas, thresholds, strict=True)]
    total = trimmed[0].clone()
    for tau in trimmed[1:]:
        total += tau
    return (total > 0).sum() - (total < 0).sum()


def _place(counts: np.ndarray, rank: int) -> tuple[int, int]:
    """The bin of the rank-th value, and its rank within the bin."""
    up_to = np.cumsum(counts)
    place = int(np.searchsorted(up_to, rank, side="right"))
    return place, rank - (int(up_to[place - 1]) if place else 0)


def _ordered(values: Tensor) -> Tensor:
    """Bit patterns as int64 from 0 to 2³² − 1, in the order of the numbers; −0 counts as 0."""
    import torch

    patterns = (values.contiguous() + 0.0).view(torch.int32).long() & 0xFFFFFFFF
    is_negative = patterns >= 1 << 31
    return (0xFFFFFFFF - patterns).where(is_negative, patterns + (1 << 31))


def _number(ordered: int) -> float:
    pattern = ordered - (1 << 31) if ordered >= 1 << 31 else 0xFFFFFFFF - ordered
    return float(np.uint32(pattern).view(np.float32))
