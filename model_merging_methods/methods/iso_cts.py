"""Iso-CTS: isotropic merging in common and task-specific subspaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.method import About, Sees, WholeTensor, merging_method
from model_merging_methods.singular_values import (
    Short,
    gram,
    in_strips,
    long_vectors,
    polar,
    product,
    short_polar_factor,
    short_vectors,
    square_values,
    stacked,
    strip_values,
)
from model_merging_methods.task_vectors import mean, total_in_float64

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(
    paper="Marczak et al. 2025, arXiv 2502.04959",
    sees=Sees.TENSOR,
    memory=lambda m, n, k: 4 * m * n + 4 * square_values(m, n) + strip_values(m, n),
)
def iso_cts(
    x: WholeTensor,
    *,
    common_space_fraction: Annotated[float, About("share of the directions taken from the sum", 0, 1)] = 0.8,
    scaling_coefficient: Annotated[float, About("factor on the merged task vector")] = 1.0,
) -> Tensor:
    """Join directions of the sum and of each model, orthogonal and all with their mean singular value.

    Each model gives the same number of directions outside the common space, rounded half to even. Other tensors than
    matrices: the mean task vector. Null directions, measured by the sum's largest singular value, stay out of the
    result and count as 0 in the mean; the published code adds arbitrary vectors there.
    """
    from torch import cat, float32

    if len(x.shape) != 2:
        return x.moved(mean(x.deltas), scaling_coefficient)
    rank = min(x.shape)
    per_model = round((rank - int(rank * common_space_fraction)) / len(x.deltas))
    per_model = min(per_model, rank // len(x.deltas))  # rounding up may ask for more directions than there are
    matrix, is_tall = total_in_float64(x.deltas), x.shape[0] > x.shape[1]
    u, sigma = short_vectors(gram(matrix))
    largest = float(sigma[0]) if len(sigma) else 0.0
    count = rank - per_model * len(x.deltas)
    common, common_v = Short(u[:, :count], sigma[:count]), long_vectors(Short(u, sigma), matrix, count)
    del matrix
    shorts, longs = [], []
    for place in range(len(x.deltas)):
        outside = without(x.deltas[place].double(), common.u, common_v, is_tall)
        shorts.append(short_vectors(gram(outside), per_model, largest))
        longs.append(long_vectors(shorts[-1], outside))
        del outside
    us, sigmas = zip(*shorts, common, strict=True)
    v = stacked([*longs, common_v], is_tall)
    del longs, common_v
    u, scale = short_polar_factor(us, is_tall), cat(sigmas).sum() / rank
    w, merged = polar(v), v.new_empty(x.shape, dtype=float32)
    in_strips(lambda strip: product(u, scale, w @ strip, is_tall), [v], merged)
    del v
    return x.moved(merged, scaling_coefficient)


def without(matrix: Tensor, u: Tensor, v: Tensor, is_tall: bool) -> Tensor:
    """A − P P'A, where P is the u of a wide or the v of a tall matrix. Overwrites A."""
    if not is_tall:
        return in_strips(lambda strip: strip - u @ (u.T @ strip), [matrix], matrix)
    inside = v @ matrix
    return in_strips(lambda strip, of_v: strip - (of_v.T @ inside).T, [matrix, v], matrix)
