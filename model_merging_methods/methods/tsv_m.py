"""TSV-Merge: task singular vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from model_merging_methods.method import About, Sees, Tensors, merging_method
from model_merging_methods.singular_values import polar_factor, triplets
from model_merging_methods.task_vectors import mean

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(
    paper="Gargiulo et al. 2025, arXiv 2412.00081",
    sees=Sees.TENSOR,
    memory=lambda m, n, k: 5 * m * n + 9 * min(m, n) ** 2,
)
def tsv_m(
    x: Tensors, *, scaling_coefficient: Annotated[float, About("factor on the merged task vector")] = 1.0
) -> Tensor:
    """Cut each task matrix to its first singular vectors, make those of all models orthogonal and add them.

    Each model gives int(rank/K) triplets. Other tensors than matrices: the mean task vector. Null directions are left
    out, before the models are stacked and in the polar factors; the published code returns arbitrary vectors there.
    """
    if len(x.shape) != 2:
        return x.base + scaling_coefficient * mean(x.deltas)
    u, sigma, v = stacked_triplets(x.deltas)
    merged = (polar_factor(u) * sigma) @ polar_factor(v)
    return x.base + scaling_coefficient * merged.float()


def stacked_triplets(deltas: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """U, S and V' of each model's first int(rank/K) singular triplets, side by side."""
    from torch import cat

    count = min(deltas[0].shape) // len(deltas)
    u, sigma, v = zip(*(triplets(delta, count) for delta in deltas), strict=True)
    return cat(u, dim=1), cat(sigma), cat(v)
