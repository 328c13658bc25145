"""Arcee Fusion: only the changes that matter most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from model_merging_methods.method import Sees, WholeTensor, merging_method

if TYPE_CHECKING:
    from torch import Tensor

_EPSILON = 1e-8  # added to probabilities
_STRETCH = 1 << 16  # values that stay in a CPU's cache in float64


@merging_method(
    paper="Arcee Fusion; as in mergekit",
    sees=Sees.TENSOR,
    models=(1, 1),
    memory=lambda m, n, k: 3 * m * n,
)
def arcee_fusion(x: WholeTensor) -> Tensor:
    """Add only the values of a task vector that are exceptionally important for their tensor.

    A value's importance is |δ| · KL, where KL is the divergence between the softmaxes of its row and the base's row.
    Values at or above the median plus 1.5 times the interquartile range are added. Importance is computed in float64:
    float32 rounds away the divergence of two nearly equal rows, and then mergekit's choice is arbitrary. Quantiles are
    over all values of the tensor; above a million, mergekit's are over a random sample.
    """
    divergences, delta = row_divergences(x.finetuned[0], x.base), x.deltas[0]
    lower, median, upper = quantiles(delta.double().abs_().mul_(divergences), (0.25, 0.5, 0.75))
    for values, divergence in zip(delta.view(-1, x.shape[-1]), divergences.view(-1, 1), strict=True):
        values.masked_fill_(values.abs() * divergence < median + 1.5 * (upper - lower), 0)
    return x.moved(delta)


def row_divergences(theta: Tensor, base: Tensor) -> Tensor:
    """KL = Σ p log(p / q) of each row, along the last axis, which is kept: float64 [..., 1]."""
    import torch

    columns = base.shape[-1]
    at_once = max(1, _STRETCH // columns)
    rows = zip(*(weight.reshape(-1, columns).split(at_once) for weight in (theta, base)), strict=True)
    divergences = []
    for theta_rows, base_rows in rows:
        p = theta_rows.double().softmax(-1) + _EPSILON
        q = base_rows.double().softmax(-1) + _EPSILON
        divergences.append((p * (p / q).log()).sum(-1))
    return torch.cat(divergences).reshape(*base.shape[:-1], 1)


def quantiles(values: Tensor, fractions: Sequence[float]) -> list[float]:
    """For each fraction f the int(f · (n − 1))-th smallest value, counted from 0. Changes their order."""
    places = [int(fraction * (values.numel() - 1)) for fraction in fractions]
    numbers = values.view(-1).cpu().numpy()
    numbers.partition(places)
    return numbers[places].tolist()
