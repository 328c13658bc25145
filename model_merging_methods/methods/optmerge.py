"""OptMerge: WUDI with low-rank task vectors and gradient descent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.interference import changed
from model_merging_methods.method import About, Sees, WholeTensor, is_linear_weight, merging_method
from model_merging_methods.singular_values import (
    STRIP,
    gram,
    in_strips,
    short_vectors,
    square_values,
    triplets,
)
from model_merging_methods.task_vectors import mean, squared_norm

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(
    paper="Wei et al. 2026, arXiv 2505.19892 (wudi2)",
    sees=Sees.TENSOR,
    merges=is_linear_weight,
    memory=lambda m, n, k: max(7 * m * n, 5 * m * n + 6 * n * min(m, STRIP)) + 2 * square_values(m, n),
)
def optmerge(
    x: WholeTensor,
    *,
    iterations: Annotated[int, About("steps of gradient descent", 0)] = 300,
    learning_rate: Annotated[float, About("learning rate", 0)] = 1e-4,
    momentum: Annotated[float, About("momentum", 0, 1)] = 0.9,
    scaling_coefficient: Annotated[float, About("factor on the merged task vector")] = 1.0,
) -> Tensor:
    """Start at the mean task vector and reduce the interference with low-rank task vectors by gradient descent.

    Li are the first int(rank/K) singular triplets of δi, Hi = Li'Li; the gradient is 2 Σ (θ − Li) Hi / |δi|². It is
    linear in θ, so all steps are taken at once in the eigenvectors of Σ Hi / |δi|². A model with δi = 0 is left out.
    """
    from torch import cat, float64, zeros_like

    deltas = changed(x.deltas)
    if not deltas:
        return x.base
    theta = mean(deltas)
    gradient, rows = zeros_like(theta, dtype=float64), []
    for delta in deltas:
        norm, (u, sigma, v) = squared_norm(delta), triplets(delta, min(x.shape) // len(deltas))
        del delta
        h = sigma.square() / norm  # Hi / |δi|² = V diag(h) V'
        for of_gradient, of_theta, of_u in zip(*(each.split(STRIP) for each in (gradient, theta, u)), strict=True):
            of_gradient += ((of_theta.double() @ v.T - of_u * sigma) * h) @ v
        rows.append(v.mul_(h.sqrt().unsqueeze(1)))
        del u, v, of_u
    stacked = cat(rows)
    del rows
    short = short_vectors(gram(stacked))
    v = in_strips(short.longer, [stacked], stacked[: len(short.sigma)])
    moved = descent(short.sigma.square(), iterations, learning_rate, momentum)
    for of_theta, of_gradient in zip(theta.split(STRIP), gradient.split(STRIP), strict=True):
        of_theta.copy_(of_theta.double() + (of_gradient @ v.T * moved) @ v)
    del gradient, of_gradient, stacked, v
    return x.moved(theta, scaling_coefficient)


def descent(curvature: Tensor, iterations: int, learning_rate: float, momentum: float) -> Tensor:
    """How far gradient descent from 0 gets along each eigenvector, for a starting gradient of 2 there."""
    position, velocity = curvature * 0, curvature * 0
    for _ in range(iterations):
        velocity = momentum * velocity + 2 * (1 + curvature * position)
        position = position - learning_rate * velocity
    return position
