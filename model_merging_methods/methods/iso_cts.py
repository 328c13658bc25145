"""Iso-CTS: isotropic merging in common and task-specific subspaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from model_merging_methods.method import About, Sees, WholeTensor, merging_method
from model_merging_methods.singular_values import (
    NARROW,
    Short,
    as_columns,
    gram,
    in_strips,
    polar,
    product,
    short_polar_factor,
    short_vectors,
    square_values,
    strip_values,
    summed_products,
    wide,
)
from model_merging_methods.task_vectors import mean, total_in_float64

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(
    paper="Marczak et al. 2025, arXiv 2502.04959",
    sees=Sees.TENSOR,
    memory=lambda m, n, k: max(
        2 * m * n + 5 * square_values(m, n),
        3 * m * n + 3 * square_values(m, n) + 4 * min(m, n) * min(max(m, n), NARROW),
        3 * m * n + (2 if m > n else 3) * square_values(m, n) + 3 * strip_values(m, n),
    ),
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
    count, is_tall = rank - per_model * len(x.deltas), x.shape[0] > x.shape[1]
    v = wide(total_in_float64(x.deltas))  # overwritten from its end, by V' of the sum and then of the models
    common, common_v, largest = common_space(v, count)
    shorts, start = [common], rank - len(common_v)
    for place in reversed(range(len(x.deltas)) if per_model else ()):
        inside = summed_products(lambda *strips: strips, [x.deltas[place], common_v]) if is_tall else None
        square = as_columns(gram_outside(x.deltas[place], common.u, common_v, inside))
        shorts.insert(0, short_vectors(square, per_model, largest))
        del square
        end, start = start, start - len(shorts[0].sigma)
        longer = longer_outside(shorts[0], common.u, inside)
        in_strips(longer, [x.deltas[place], common_v], v[start:end])
        del inside, longer
    v = v[start:]
    us, sigmas = zip(*shorts, strict=True)
    del common, common_v, shorts
    u, scale = short_polar_factor(us, is_tall), cat(sigmas).sum() / rank
    del us
    w, merged = polar(v), v.new_empty(x.shape, dtype=float32)
    in_strips(lambda strip: product(u, scale, w @ strip, is_tall), [v], merged)
    del v
    return x.moved(merged, scaling_coefficient)


def common_space(matrix: Tensor, count: int) -> tuple[Short, Tensor, float]:
    """The first `count` singular vectors, u and V', and the largest singular value. V' overwrites the last rows."""
    short = short_vectors(gram(matrix))
    v = in_strips(lambda strip: short.longer(strip)[:count], [matrix], matrix[len(matrix) - len(short.sigma[:count]) :])
    common = Short(short.u[:, :count].contiguous(), short.sigma[:count])
    return common, v, float(short.sigma[0]) if len(short.sigma) else 0.0


# Outside the common space is A − P P'A, where P is the common u of a wide or the common v of a tall matrix. `inside` is
# A'P of a tall matrix, None for a wide one.


def gram_outside(delta: Tensor, u: Tensor, v: Tensor, inside: Tensor | None) -> Tensor:
    """The smaller Gram matrix of what is outside."""

    def outside_twice(strip: Tensor, of_v: Tensor) -> tuple[Tensor, Tensor]:
        strip -= u @ (u.T @ strip) if inside is None else inside @ of_v
        return strip, strip

    return summed_products(outside_twice, [delta, v])


def longer_outside(own: Short, u: Tensor, inside: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
    """`own.longer` of what is outside, for columns of a model and of the common V'."""
    if inside is None:
        outside = Short(own.u - u @ (u.T @ own.u), own.sigma)
        return lambda strip, of_v: outside.longer(strip)
    of_inside = own.longer(inside)
    return lambda strip, of_v: own.longer(strip) - of_inside @ of_v
