"""TSV-Merge without its orthogonalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.method import About, Sees, Tensors, merging_method
from model_merging_methods.singular_values import triplets
from model_merging_methods.task_vectors import mean

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(
    paper="Gargiulo et al. 2025, arXiv 2412.00081 (ablation)",
    sees=Sees.TENSOR,
    memory=lambda m, n, k: 6 * m * n + 9 * min(m, n) ** 2,
)
def tsv_rank_reduction(
    x: Tensors, *, scaling_coefficient: Annotated[float, About("factor on the merged task vector")] = 1.0
) -> Tensor:
    """Cut each task matrix to its first int(rank/K) singular triplets and add them.

    Other tensors than matrices: the mean task vector.
    """
    if len(x.shape) != 2:
        return x.base + scaling_coefficient * mean(x.deltas)
    merged = x.base.double() * 0
    for delta in x.deltas:
        u, sigma, v = triplets(delta, min(x.shape) // len(x.deltas))
        merged += (u * sigma) @ v
    return x.base + scaling_coefficient * merged.float()
