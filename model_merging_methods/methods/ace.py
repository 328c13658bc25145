"""ACE-Merging: adaptive covariance estimation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np

from model_merging_methods.method import About, Reading, Sees, WholeTensor, merging_method
from model_merging_methods.singular_values import (
    NARROW,
    STRIP,
    as_columns,
    gram,
    in_strips,
    short_vectors,
    square_values,
    strip_values,
    summed_products,
)
from model_merging_methods.task_vectors import mean, squared_norm, total_in_float64

if TYPE_CHECKING:
    from torch import Tensor


def memory(m: int, n: int, k: int) -> int:
    """How many float32 values the formula takes (`Method.memory`)."""
    square, strip = square_values(m, n), strip_values(m, n)
    decomposition = 2 * m * n + (k + 3) * square
    if m >= n:
        return max(decomposition, 3 * m * n + k * square + strip)
    factored = 2 * n**2 + 2 * m * n + max(m * n + 2 * n * min(m, NARROW), 2 * n * min(m, STRIP))
    return max(decomposition, 5 * m * n + k * square + strip, factored)


@merging_method(paper="ACE-Merging 2026, arXiv 2603.02945; as in its repository", sees=Sees.TENSOR, memory=memory)
def ace(
    x: WholeTensor,
    *,
    eps: Annotated[float, About("added to the diagonal of each covariance", 0)] = 1e-2,
    k_frac: Annotated[float, About("share of the singular values to add where models are heterogeneous", 0, 1)] = 0.3,
    scaling_coefficient: Annotated[float, About("factor on the merged task vector")] = 1.0,
) -> Tensor:
    """Weight the task matrices by input covariances that are estimated from their rows, centred.

    W = (Σ Ci Ri) (Σ Ri + 1c')⁻¹ with Ri = Ci'Ci + eps I, and c the column means of Σ Ci'Ci, added to every row. The
    centring drops the mean row of each δi. Models are heterogeneous in a tensor if var(log |δi|²) is above 0.3 of the
    squared mean, which depends on the scale: then covariances have trace 1, and the first singular vectors of a
    residual are added. Other tensors than matrices: the mean task vector. Models with |δi|² < 1e-12 are left out.

    Nothing bounds the result: deltas whose lengths differ by factors of ten can move a matrix hundreds of times as far
    as the longest of them. The merge warns then.
    """
    if len(x.shape) != 2:
        return x.moved(mean(x.deltas), scaling_coefficient)
    energies = np.array([squared_norm(delta) for delta in x.deltas])
    places = np.flatnonzero(energies >= 1e-12)
    if not len(places):
        return x.base
    deltas, energies = Reading(lambda place: x.deltas[places[place]], len(places)), energies[places]
    merged = merged_deltas(deltas, energies, eps, k_frac).float()
    return x.moved(merged, scaling_coefficient)


def merged_deltas(deltas: Sequence[Tensor], energies: np.ndarray, eps: float, k_frac: float) -> Tensor:
    """The merged task matrix, in float64.

    A covariance is in memory as the smaller of Ci'Ci and Ci Ci', which gives Ci Ri as well: (Ci Ci' + eps I) Ci. The
    residual is Σ δi (Ci'Ci − Σ Rj / K).
    """
    (m, n), k, heterogeneous = deltas[0].shape, len(deltas), is_heterogeneous(energies)
    means = [column_means(deltas[place]) for place in range(k)]
    squares = [centred_square(deltas[place], means[place]) for place in range(k)]
    traces = [float(square.trace()) + 1e-12 if heterogeneous else 1.0 for square in squares]
    ridges = [eps / trace for trace in traces]
    for place in range(k):
        squares[place].div_(traces[place]).diagonal().add_(ridges[place])
    merged = squares[0].new_zeros(m, n)
    add_products(merged, squares, deltas)
    merged -= column_means(merged)  # Σ Ci Ri, whose columns have a mean of 0
    if m >= n:
        estimated = as_columns(sum(squares))  # Σ Ri
        for place in range(k):
            squares[place].sub_(estimated, alpha=1 / k).diagonal().sub_(ridges[place])
    else:
        squares.clear()
        estimated = summed_covariances(deltas, means, traces)
        estimated.diagonal().add_(sum(ridges))
    shift = estimated.mean(0) - sum(ridges) / n
    divide(merged, estimated.add_(shift / (energies.mean() + 1e-12) if heterogeneous else shift))
    del estimated
    count = int(min(m, n) * k_frac)
    if heterogeneous and count:
        squares = squares or residual_squares(deltas, means, traces, eps)
        add_products(merged, squares, deltas)
        add_leading_triplets(merged, count)
        add_products(merged, squares, deltas, sign=-1)
    return merged


def column_means(matrix: Tensor) -> Tensor:
    """The mean row in float64, once for each row."""
    total = sum(rows.double().sum(0) for rows in matrix.split(NARROW))
    return (total / len(matrix)).expand(matrix.shape)


def flat(matrix: Tensor) -> Tensor:
    """A matrix, or its transpose if it is tall or square."""
    return matrix.T if matrix.shape[0] >= matrix.shape[1] else matrix


def centred_square(delta: Tensor, mean: Tensor) -> Tensor:
    """C'C, or C C' of a wide matrix."""

    def twice(strip: Tensor, of_mean: Tensor) -> tuple[Tensor, Tensor]:
        strip -= of_mean
        return strip, strip

    return summed_products(twice, [flat(delta), flat(mean)])


def add_products(target: Tensor, squares: Sequence[Tensor], deltas: Sequence[Tensor], sign: int = 1) -> None:
    """Add Σ Si δi to a wide matrix, Σ δi Si to others."""
    for place, square in enumerate(squares):
        matrices = zip(*(flat(matrix).split(STRIP, 1) for matrix in (target, deltas[place])), strict=True)
        for part, strip in matrices:
            part.addmm_(square, strip.double(), alpha=sign)
        del matrices, strip


def summed_covariances(deltas: Sequence[Tensor], means: Sequence[Tensor], traces: Sequence[float]) -> Tensor:
    """Σ Ci'Ci / their traces, in memory as columns."""
    n = deltas[0].shape[1]
    total = means[0].new_zeros(n, n).T
    for place, trace in enumerate(traces):
        for rows in deltas[place].split(NARROW):
            rows = rows.double().sub_(means[place][0])
            total.addmm_(rows.T, rows, alpha=1 / trace)
            del rows
    return total


def divide(matrix: Tensor, square: Tensor) -> None:
    """Replace A by A S⁻¹, in strips of rows. Overwrites S, which is in memory as columns."""
    from torch import int32
    from torch.linalg import lu_factor, lu_solve

    factors = lu_factor(square, out=(square, square.new_empty(0, dtype=int32)))
    for rows in matrix.split(STRIP):
        rows.copy_(lu_solve(*factors, rows, left=False))


def residual_squares(
    deltas: Sequence[Tensor], means: Sequence[Tensor], traces: Sequence[float], eps: float
) -> list[Tensor]:
    """The Si of a wide residual Σ Si δi: (δi − Σ δj / K) Ci' / trace − ridge I.

    Ci'δi is Ci'Ci there, because the columns of Ci have a mean of 0.
    """
    k, squares = len(deltas), []
    centre = total_in_float64(deltas).div_(k)
    for place, trace in enumerate(traces):
        matrices = [deltas[place], means[place], centre]
        squares.append(summed_products(lambda strip, *others: [strip - other for other in others], matrices).T)
        del matrices
        squares[-1].div_(trace).diagonal().sub_(sum(eps / each for each in traces) / k)
    return squares


def add_leading_triplets(matrix: Tensor, count: int) -> None:
    """Add a matrix's first singular vectors with their mean singular value."""
    short = short_vectors(gram(matrix), count)
    scale = short.sigma.sum() / count
    in_strips(lambda strip: strip + scale * (short.u @ short.longer(strip)), [matrix], matrix)


def is_heterogeneous(energies: Sequence[float]) -> bool:
    """Whether var(log |δi|²) / mean(log |δi|²)² > 0.3, with the unbiased variance."""
    logs = np.log(np.asarray(energies) + 1e-12)
    return len(logs) > 1 and bool(logs.var(ddof=1) / logs.mean() ** 2 > 0.3)
