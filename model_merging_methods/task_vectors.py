"""Sums and norms of task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from model_merging_methods.stretches import STRETCH

if TYPE_CHECKING:
    from torch import Tensor


def total(deltas: Sequence[Tensor]) -> Tensor:
    """Σ δi, added in model order."""
    result = deltas[0].clone()
    for delta in deltas[1:]:
        result += delta
    return result


def mean(deltas: Sequence[Tensor]) -> Tensor:
    """Σ δi / K."""
    result = total(deltas)
    return result / result.new_full((), len(deltas))  # GPUs multiply by the inverse of a plain number


def squared_norm(delta: Tensor) -> float:
    """|δ|², summed in float64, in stretches that take little memory."""
    return float(sum(stretch.double().square().sum() for stretch in delta.flatten().split(STRETCH)))
