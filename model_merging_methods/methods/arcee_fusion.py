"""Arcee Fusion: only the changes that matter most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from model_merging_methods.method import Sees, Strips, WholeTensor, merging_method

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

_EPSILON = 1e-8  # added to probabilities
_STRETCH = 1 << 16  # values that stay in a CPU's cache in float64


def in_strips(strips: Strips, n: int) -> Iterator[np.ndarray]:
    """The merged values on the CPU, strip by strip, of a parameter of n values. Reads the models three times."""
    import numpy as np

    from model_merging_methods.kernels import elementwise, selection

    of_strips, sample = _divergences_of_strips(strips, n)

    def products() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for (base, theta), divergences in zip(strips(), of_strips, strict=True):
            yield _subtract(theta, base), divergences

    least = _least(selection.kth_of_products(products, sample, n, _places(n)))
    for (base, theta), divergences in zip(strips(), of_strips, strict=True):
        elementwise.drop_products_below(_subtract(theta, base), divergences, least)
        yield np.add(base, theta, out=base)


def _divergences_of_strips(strips: Strips, n: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The divergences of the rows of each strip, and a sample of all values' importance, in order."""
    import numpy as np

    from model_merging_methods.kernels.divergences import row_divergences
    from model_merging_methods.kernels.selection import some_products

    of_strips, sample = [], []
    for base, theta in strips():
        of_strips.append(row_divergences(theta, base))
        sample.append(some_products(_subtract(theta, base), of_strips[-1], n))
    return of_strips, np.sort(np.concatenate(sample))


def _subtract(theta: np.ndarray, base: np.ndarray) -> np.ndarray:
    """δ in place of θ1."""
    import numpy as np

    with np.errstate(over="ignore"):  # infinity: the merged values will not fit
        return np.subtract(theta, base, out=theta)


@merging_method(
    paper="Arcee Fusion; as in mergekit",
    sees=Sees.TENSOR,
    models=(1, 1),
    memory=lambda m, n, k: 3 * m * n,
    in_strips=in_strips,
)
def arcee_fusion(x: WholeTensor) -> Tensor:
    """Add only the values of a task vector that are exceptionally important for their tensor.

    A value's importance is |δ| · KL, where KL is the divergence between the softmaxes of its row and the base's row.
    Values at or above the median plus 1.5 times the interquartile range are added. Importance is computed in float64:
    float32 rounds away the divergence of two nearly equal rows, and then mergekit's choice is arbitrary. Quantiles are
    over all values of the tensor; above a million, mergekit's are over a random sample.
    """
    rows = (-1, x.shape[-1])
    divergences, delta = row_divergences(x.finetuned[0].view(rows), x.base.view(rows)), x.deltas[0].view(rows)
    keep_exceptional(delta, divergences)
    return x.moved(delta.view(x.shape))


def row_divergences(theta: Tensor, base: Tensor) -> Tensor:
    """KL = Σ p log (p / q) of each row [rows, n]: float64 [rows].

    With r = p / q − 1 this is Σ q ((1 + r) log (1 + r) − r), because Σ q r = 0. Rows that hardly differ lose no digits.
    """
    import torch

    divergences = []
    at_once = max(1, _STRETCH // base.shape[1])
    for theta_rows, base_rows in zip(theta.split(at_once), base.split(at_once), strict=True):
        p = theta_rows.double().softmax(-1).add_(_EPSILON)
        q = base_rows.double().softmax(-1).add_(_EPSILON)
        r = p.sub_(q).div_(q)
        divergences.append(((1 + r) * r.log1p() - r).mul_(q).sum(-1))
    return torch.cat(divergences)


def keep_exceptional(rows: Tensor, divergences: Tensor) -> None:
    """Set the values of a task vector [rows, n] to 0, except those of exceptional importance."""
    importance = rows.double().abs_().mul_(divergences.unsqueeze(1))
    least = _least([float(importance.view(-1).kthvalue(place + 1).values) for place in _places(rows.numel())])
    at_once = max(1, _STRETCH // rows.shape[1])
    for part, of_part in zip(rows.split(at_once), importance.split(at_once), strict=True):
        part.masked_fill_(of_part < least, 0)


def _places(n: int) -> list[int]:
    """The places of the quartiles among n values in order, counted from 0."""
    return [int(fraction * (n - 1)) for fraction in (0.25, 0.5, 0.75)]


def _least(quartiles: Sequence[float]) -> float:
    """The least importance that is exceptional."""
    lower, median, upper = quartiles
    return median + 1.5 * (upper - lower)
