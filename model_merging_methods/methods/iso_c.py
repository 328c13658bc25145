"""Iso-C: isotropic merging in the common subspace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.method import About, Sees, WholeTensor, merging_method
from model_merging_methods.singular_values import gram, in_strips, product, short_vectors, square_values, strip_values
from model_merging_methods.task_vectors import mean, total_in_float64

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(
    paper="Marczak et al. 2025, arXiv 2502.04959",
    sees=Sees.TENSOR,
    memory=lambda m, n, k: 3 * m * n + (2 if m > n else 3) * square_values(m, n) + 3 * strip_values(m, n),
)
def iso_c(
    x: WholeTensor, *, scaling_coefficient: Annotated[float, About("factor on the merged task vector")] = 1.0
) -> Tensor:
    """Add the task matrices and set all singular values of the sum to their mean.

    Other tensors than matrices: the mean task vector. Null directions stay out of the result and count as 0 in the
    mean; the published code adds arbitrary vectors there.
    """
    from torch import float32

    if len(x.shape) != 2:
        return x.moved(mean(x.deltas), scaling_coefficient)
    matrix, is_tall = total_in_float64(x.deltas), x.shape[0] > x.shape[1]
    short = short_vectors(gram(matrix))
    scale = short.sigma.sum() / min(x.shape)
    merged = matrix.new_empty(x.shape, dtype=float32)
    in_strips(lambda strip: product(short.u, scale, short.longer(strip), is_tall), [matrix], merged)
    del matrix
    return x.moved(merged, scaling_coefficient)
