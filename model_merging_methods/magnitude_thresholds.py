"""The k-th smallest magnitude of many values, exactly, without holding or sorting them.

Bit patterns of non-negative float32 numbers are in the numbers' order. So one pass counts the high halves
of the patterns, which tells in which of 32,768 bins the k-th lies, and a second counts the low halves
within that bin. Counts add up in any order, so threads and block sizes cannot change the result.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

_HIGH_BINS = 1 << 15  # the sign bit is 0
_LOW_BINS = 1 << 16

# Applies a function to every block of a model's values and yields the results, in any order.
MapBlocks = Callable[[Callable[[Sequence[Tensor]], list[np.ndarray]]], Iterable[list[np.ndarray]]]


def kth_smallest_magnitudes(map_blocks: MapBlocks, ranks: Sequence[int]) -> list[float | None]:
    """For each model i, the k-th smallest |x|, k = ranks[i] counted from 1; None where k = 0.

    `map_blocks` hands a function the float32 blocks of all models at one place, for every place. It is
    called twice.
    """
    if not any(ranks):
        return [None] * len(ranks)
    high_counts = _total(map_blocks(lambda blocks: [_count_high_halves(block) for block in blocks]))
    bins, remaining = zip(*[_find_rank(c, k) for c, k in zip(high_counts, ranks, strict=True)], strict=True)

    def count_low_halves(blocks: Sequence[Tensor]) -> list[np.ndarray]:
        return [_count_low_halves(block, bin) for block, bin in zip(blocks, bins, strict=True)]

    low_counts = _total(map_blocks(count_low_halves))
    thresholds = []
    for counts, bin, rank, k in zip(low_counts, bins, remaining, ranks, strict=True):
        pattern = np.array([bin << 16 | _find_rank(counts, rank)[0]], dtype=np.int32)
        thresholds.append(float(pattern.view(np.float32)[0]) if k else None)
    return thresholds


def _patterns(block: Tensor) -> Tensor:
    return block.abs().view(torch.int32)


def _count_high_halves(block: Tensor) -> np.ndarray:
    return torch.bincount(_patterns(block) >> 16, minlength=_HIGH_BINS).numpy()


def _count_low_halves(block: Tensor, bin: int) -> np.ndarray:
    patterns = _patterns(block)
    inside = patterns[(patterns >> 16) == bin]
    return torch.bincount(inside & 0xFFFF, minlength=_LOW_BINS).numpy()


def _total(counts_of_blocks: Iterable[list[np.ndarray]]) -> list[np.ndarray]:
    totals: list[np.ndarray] = []
    for counts in counts_of_blocks:
        if not totals:
            totals = [np.zeros_like(count) for count in counts]
        for total, count in zip(totals, counts, strict=True):
            total += count
    return totals


def _find_rank(counts: np.ndarray, rank: int) -> tuple[int, int]:
    """The bin that holds the value of this rank (from 1), and its rank within the bin."""
    cumulated = np.cumsum(counts)
    bin = int(np.searchsorted(cumulated, rank)) if rank else 0
    return bin, rank - (int(cumulated[bin - 1]) if bin else 0)
