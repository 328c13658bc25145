"""Masks on weights before they are merged: DARE's random mask, and one by magnitude.

All functions take float32 blocks of a tensor, as in `merging_methods`. Source: DARE (Yu et al. 2024).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# The constants of the SplitMix64 generator, as signed 64-bit integers.
_INCREMENT = 0x9E3779B97F4A7C15 - 2**64
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - 2**64
_MULTIPLIER_2 = 0x94D049BB133111EB - 2**64
_LANES = 4  # 16-bit random words in a 64-bit one


def random_drop_mask(key: int, start: int, stop: int, mask_rate: float, device: str = "cpu") -> Tensor:
    """Which of the positions start … stop − 1 of a tensor are dropped, each with probability `mask_rate`.

    `key` is the tensor's (`merge_request.mask_key`), as a signed 64-bit integer.

    Returns a bool tensor. Position j is dropped if its random word, a function of `key` and j alone, is below
    `mask_rate`: 16 bits nearly always decide, and 62 more if these are equal (once in 65,536).
    """
    if mask_rate >= 1:
        return torch.ones(stop - start, dtype=torch.bool, device=device)
    first, last = start // _LANES, -(-stop // _LANES)
    words = random_words(key, torch.arange(first, last, device=device)).view(torch.int16)
    words = words[start - first * _LANES : stop - first * _LANES]
    level = int(mask_rate * 65536)
    dropped = words < level - 32768
    undecided = (words == level - 32768).nonzero().squeeze(1)
    finer = random_words(~key, undecided + start) >> 1 & (2**62 - 1)
    dropped[undecided] = finer.double() < (mask_rate * 65536 - level) * 2.0**62
    return dropped


def random_words(key: int, counters: Tensor) -> Tensor:
    """SplitMix64's output function at `counters` (int64) of the stream that starts at `key`."""
    z = counters * _INCREMENT + key
    z = (z ^ _shift_right(z, 30)) * _MULTIPLIER_1
    z = (z ^ _shift_right(z, 27)) * _MULTIPLIER_2
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """A logical shift: torch's `>>` repeats the sign bit."""
    return (z >> bits) & (2 ** (64 - bits) - 1)


def magnitude_keep_mask(block: Tensor, start: int, numbers: Sequence[float]) -> Tensor:
    """Which values of a tensor, from position `start` on, are kept by magnitude: those above numbers[0], or equal to it
    up to position numbers[1]; except those above numbers[2], or equal to it up to position numbers[3]."""
    magnitudes = block.abs()
    positions = torch.arange(start, start + block.numel(), device=block.device)
    threshold, last, too_large, last_too_large = numbers[:4]
    are_kept = (magnitudes > threshold) | ((magnitudes == threshold) & (positions <= int(last)))
    return are_kept & ~((magnitudes > too_large) | ((magnitudes == too_large) & (positions <= int(last_too_large))))


def apply_mask(block: Tensor, dropped: Tensor, mask_rate: float, use_weight_rescale: bool) -> Tensor:
    """`block` with the dropped values at 0 and, with `use_weight_rescale`, the survivors divided by 1 − p
    (unless p = 1, when nothing survives)."""
    masked = block * ~dropped
    if use_weight_rescale and mask_rate != 1:
        masked = masked / masked.new_full((), 1 - mask_rate)  # GPUs multiply by the inverse of a plain number
    return masked
