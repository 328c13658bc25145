"""Sums and norms of task vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from model_merging_methods.stretches import STRETCH

if TYPE_CHECKING:
    from torch import Tensor


def total(deltas: Iterable[Tensor]) -> Tensor:
    """Σ δi, added in model order."""
    deltas = iter(deltas)
    result = next(deltas).clone()
    for delta in deltas:
        result += delta
    return result


def mean(deltas: Sequence[Tensor]) -> Tensor:
    """Σ δi / K."""
    result = total(deltas)
    return result / result.new_full((), len(deltas))  # GPUs multiply by the inverse of a plain number


def total_in_float64(deltas: Sequence[Tensor]) -> Tensor:
    """The same in float64, from 0 on, in stretches that take little memory."""
    result = deltas[0].double().add_(0)
    for place in range(1, len(deltas)):
        for part, stretch in zip(result.view(-1).split(STRETCH), deltas[place].view(-1).split(STRETCH), strict=True):
            part += stretch
    return result


def squared_norm(delta: Tensor) -> float:
    """|δ|², summed in float64, in stretches that take little memory."""
    return float(sum(stretch.double().square().sum() for stretch in delta.flatten().split(STRETCH)))
