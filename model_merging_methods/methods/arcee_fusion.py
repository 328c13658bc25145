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
    keep = keep_exceptional if delta.device.type != "cpu" else compiled_keep_exceptional
    keep(delta.view(-1, x.shape[-1]), divergences)
    return x.moved(delta)


def row_divergences(theta: Tensor, base: Tensor) -> Tensor:
    """KL = Σ p log(p / q) of each row, along the last axis: float64 [rows]."""
    import torch

    columns = base.shape[-1]
    at_once = max(1, _STRETCH // columns)
    rows = zip(*(weight.reshape(-1, columns).split(at_once) for weight in (theta, base)), strict=True)
    divergences = []
    for theta_rows, base_rows in rows:
        p = theta_rows.double().softmax(-1).add_(_EPSILON)
        q = base_rows.double().softmax(-1).add_(_EPSILON)
        divergences.append(torch.div(p, q, out=q).log_().mul_(p).sum(-1))
    return torch.cat(divergences)


def keep_exceptional(rows: Tensor, divergences: Tensor) -> None:
    """Set the values of a task vector [rows, n] to 0, except those of exceptional importance."""
    importance = rows.double().abs_().mul_(divergences.unsqueeze(1))
    quartiles = importance.flatten().sort().values[_places(rows.numel())]
    rows.masked_fill_(importance < _least(quartiles.tolist()), 0)


def compiled_keep_exceptional(rows: Tensor, divergences: Tensor) -> None:
    """The same on the CPU."""
    import numpy as np

    from model_merging_methods.kernels import elementwise, selection

    values, factors = rows.numpy(), divergences.numpy()
    quartiles = selection.kth_of_products(values, factors, np.array(_places(rows.numel())))
    elementwise.drop_products_below(values, factors, _least(quartiles.tolist()))


def _places(n: int) -> list[int]:
    """The places of the quartiles among n values in order, counted from 0."""
    return [int(fraction * (n - 1)) for fraction in (0.25, 0.5, 0.75)]


def _least(quartiles: Sequence[float]) -> float:
    """The least importance that is exceptional."""
    lower, median, upper = quartiles
    return median + 1.5 * (upper - lower)
