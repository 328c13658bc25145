"""TSV-Merge without its orthogonalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.method import About, Sees, WholeTensor, merging_method
from model_merging_methods.singular_values import gram, in_strips, product, short_vectors, square_values, strip_values
from model_merging_methods.task_vectors import mean

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(
    paper="Gargiulo et al. 2025, arXiv 2412.00081 (ablation)",
    sees=Sees.TENSOR,
    memory=lambda m, n, k: (
        max(3 * m * n + square_values(m, n), m * n + 3 * square_values(m, n), k * m * n + (k + 3) * strip_values(m, n))
        + square_values(m, n)
    ),
)
def tsv_rank_reduction(
    x: WholeTensor, *, scaling_coefficient: Annotated[float, About("factor on the merged task vector")] = 1.0
) -> Tensor:
    """Cut each task matrix to its first int(rank/K) singular triplets and add them.

    Other tensors than matrices: the mean task vector.
    """
    if len(x.shape) != 2:
        return x.moved(mean(x.deltas), scaling_coefficient)
    count, is_tall = min(x.shape) // len(x.deltas), x.shape[0] > x.shape[1]
    shorts = [short_vectors(gram(delta), count) for delta in x.deltas]

    def added(*strips: Tensor) -> Tensor:
        return sum(product(*own, own.longer(strip), is_tall) for own, strip in zip(shorts, strips, strict=True))

    deltas = list(x.deltas)
    merged = in_strips(added, deltas, deltas[0])
    del deltas
    return x.moved(merged, scaling_coefficient)
