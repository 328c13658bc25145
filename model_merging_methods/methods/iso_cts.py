"""Iso-CTS: isotropic merging in common and task-specific subspaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.method import About, Sees, Tensors, merging_method
from model_merging_methods.singular_values import polar_factor, triplets
from model_merging_methods.task_vectors import mean

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(
    paper="Marczak et al. 2025, arXiv 2502.04959",
    sees=Sees.TENSOR,
    memory=lambda m, n, k: 10 * m * n + 9 * min(m, n) ** 2,
)
def iso_cts(
    x: Tensors,
    *,
    common_space_fraction: Annotated[float, About("share of the directions taken from the sum", 0, 1)] = 0.8,
    scaling_coefficient: Annotated[float, About("factor on the merged task vector")] = 1.0,
) -> Tensor:
    """Join directions of the sum and of each model, orthogonal and all with their mean singular value.

    Each model gives the same number of directions outside the common space, rounded half to even. Other tensors than
    matrices: the mean task vector. Null directions, measured by the sum's largest singular value, stay out of the
    result and count as 0 in the mean; the published code adds arbitrary vectors there.
    """
    from torch import cat

    if len(x.shape) != 2:
        return x.base + scaling_coefficient * mean(x.deltas)
    rank = min(x.shape)
    per_model = round((rank - int(rank * common_space_fraction)) / len(x.deltas))
    u, sigma, v = triplets(sum(delta.double() for delta in x.deltas))
    largest = float(sigma[0]) if len(sigma) else 0.0
    common = max(rank - per_model * len(x.deltas), 0)
    u, sigma, v = u[:, :common], sigma[:common], v[:common]
    parts = []
    for delta in x.deltas:
        outside = delta.double()
        parts.append(triplets(outside - u @ (u.T @ outside), per_model, largest))
    us, sigmas, vs = zip(*parts, (u, sigma, v), strict=True)
    merged = (polar_factor(cat(us, dim=1)) * (cat(sigmas).sum() / rank)) @ polar_factor(cat(vs))
    return x.base + scaling_coefficient * merged.float()
