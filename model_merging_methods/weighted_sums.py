"""Weighted sums of blocks, in the order of operations that defines a merge.

Each term is multiplied by its weight, rounded to float32, and added in model order. The order shows in results that are
saved in 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def weighted_sum(terms: Iterable[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ wi xi, each product rounded to float32, added in order."""
    terms = iter(terms)
    total = next(terms) * weights[0]
    for term, weight in zip(terms, weights[1:], strict=True):
        total += term * weight
    return total


def sum_of_weights(weights: Sequence[float]) -> float:
    """Σ wi, added in float32 in order."""
    total = np.float32(0)
    for weight in weights:
        total += np.float32(weight)
    return float(total)
