"""OptMerge: WUDI with low-rank task vectors and gradient descent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.interference import changed
from model_merging_methods.method import About, Sees, Tensors, is_linear_weight, merging_method
from model_merging_methods.singular_values import triplets
from model_merging_methods.task_vectors import mean, squared_norm

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(
    paper="Wei et al. 2026, arXiv 2505.19892 (wudi2)",
    sees=Sees.TENSOR,
    merges=is_linear_weight,
    memory=lambda m, n, k: 10 * m * n + 9 * min(m, n) ** 2,
)
def optmerge(
    x: Tensors,
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
    from torch import cat

    deltas = changed(x.deltas)
    if not deltas:
        return x.base.clone()
    theta = mean(deltas).double()
    gradient, rows = 0, []
    for delta in deltas:
        u, sigma, v = triplets(delta, min(x.shape) // len(deltas))
        h = sigma.square() / squared_norm(delta)  # Hi / |δi|² = V diag(h) V'
        gradient = gradient + ((theta @ v.T - u * sigma) * h) @ v
        rows.append(h.sqrt().unsqueeze(1) * v)
    _, sigma, v = triplets(cat(rows))
    moved = descent(sigma.square(), iterations, learning_rate, momentum)
    theta += (gradient @ v.T * moved) @ v
    return x.base + scaling_coefficient * theta.float()


def descent(curvature: Tensor, iterations: int, learning_rate: float, momentum: float) -> Tensor:
    """How far gradient descent from 0 gets along each eigenvector, for a starting gradient of 2 there."""
    position, velocity = curvature * 0, curvature * 0
    for _ in range(iterations):
        velocity = momentum * velocity + 2 * (1 + curvature * position)
        position = position - learning_rate * velocity
    return position
