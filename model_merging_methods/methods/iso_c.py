"""Iso-C: isotropic merging in the common subspace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.method import About, Sees, Tensors, merging_method
from model_merging_methods.singular_values import triplets
from model_merging_methods.task_vectors import mean

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(
    paper="Marczak et al. 2025, arXiv 2502.04959",
    sees=Sees.TENSOR,
    memory=lambda m, n, k: 4 * m * n + 9 * min(m, n) ** 2,
)
def iso_c(
    x: Tensors, *, scaling_coefficient: Annotated[float, About("factor on the merged task vector")] = 1.0
) -> Tensor:
    """Add the task matrices and set all singular values of the sum to their mean.

    Other tensors than matrices: the mean task vector. Null directions stay out of the result and count as 0 in the
    mean; the published code adds arbitrary vectors there.
    """
    if len(x.shape) != 2:
        return x.base + scaling_coefficient * mean(x.deltas)
    p, sigma, q = triplets(sum(delta.double() for delta in x.deltas))
    merged = (p * (sigma.sum() / min(x.shape))) @ q
    return x.base + scaling_coefficient * merged.float()
