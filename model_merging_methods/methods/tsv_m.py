"""TSV-Merge: task singular vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from model_merging_methods.method import About, Sees, WholeTensor, merging_method
from model_merging_methods.singular_values import (
    Short,
    gram,
    in_strips,
    polar,
    product,
    short_polar_factor,
    short_vectors,
    square_values,
    strip_values,
)
from model_merging_methods.task_vectors import mean

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(
    paper="Gargiulo et al. 2025, arXiv 2412.00081",
    sees=Sees.TENSOR,
    memory=lambda m, n, k: max(
        2 * m * n + 5 * square_values(m, n),
        3 * m * n + (2 if m > n else 3) * square_values(m, n) + 3 * strip_values(m, n),
    ),
)
def tsv_m(
    x: WholeTensor, *, scaling_coefficient: Annotated[float, About("factor on the merged task vector")] = 1.0
) -> Tensor:
    """Cut each task matrix to its first singular vectors, make those of all models orthogonal and add them.

    Each model gives int(rank/K) triplets. Other tensors than matrices: the mean task vector. Null directions are left
    out, before the models are stacked and in the polar factors; the published code returns arbitrary vectors there.
    """
    from torch import cat, float32

    if len(x.shape) != 2:
        return x.moved(mean(x.deltas), scaling_coefficient)
    count, is_tall = min(x.shape) // len(x.deltas), x.shape[0] > x.shape[1]
    shorts = [short_vectors(gram(delta), count) for delta in x.deltas]
    v = stacked_long_vectors(shorts, x)
    u = short_polar_factor([short.u for short in shorts], is_tall)
    sigma = cat([short.sigma for short in shorts])
    del shorts
    w, merged = polar(v), v.new_empty(x.shape, dtype=float32)
    in_strips(lambda strip: product(u, sigma, w @ strip, is_tall), [v], merged)
    del v
    return x.moved(merged, scaling_coefficient)


def stacked_long_vectors(shorts: Sequence[Short], x: WholeTensor) -> Tensor:
    """V' of all models, one under the other."""
    ranks = [len(short.sigma) for short in shorts]
    v = shorts[0].u.new_empty(sum(ranks), max(x.shape))
    if x.shape[0] > x.shape[1]:  # in memory as columns: products depend on that in their last bit
        v = v.view(v.shape[::-1]).T
    for place, rows in enumerate(v.split(ranks)):
        in_strips(shorts[place].longer, [x.deltas[place]], rows)
    return v
