"""ACE-Merging: adaptive covariance estimation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np

from model_merging_methods.method import About, Reading, Sees, WholeTensor, merging_method
from model_merging_methods.singular_values import STRIP, triplets
from model_merging_methods.task_vectors import mean, squared_norm, total_in_float64

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(
    paper="ACE-Merging 2026, arXiv 2603.02945; as in its repository",
    sees=Sees.TENSOR,
    memory=lambda m, n, k: max(7 * m * n + 2 * n * n, 6 * m * n + 4 * n * n) + 2 * n * min(m, STRIP),
)
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
    from torch import float64
    from torch.linalg import lu_factor, lu_solve

    if len(x.shape) != 2:
        return x.moved(mean(x.deltas), scaling_coefficient)
    energies = np.array([squared_norm(delta) for delta in x.deltas])
    places = np.flatnonzero(energies >= 1e-12)
    if not len(places):
        return x.base
    deltas, energies = Reading(lambda place: x.deltas[places[place]], len(places)), energies[places]
    heterogeneous = is_heterogeneous(energies)
    weighted = deltas[0].new_zeros(x.shape, dtype=float64)  # Σ Ci Ri
    residual = weighted.clone() if heterogeneous else None  # Σ δi Si
    estimated = weighted.new_zeros(x.shape[1], x.shape[1])  # Σ Ri
    shift, ridge = 0, 0.0
    for place in range(len(deltas)):
        centred = deltas[place].double()
        centred -= centred.mean(0)
        covariance = centred.T @ centred
        trace = float(covariance.trace()) + 1e-12 if heterogeneous else 1.0
        covariance /= trace
        weighted.addmm_(centred, covariance).add_(centred, alpha=eps / trace)
        estimated += covariance
        shift, ridge = shift + covariance.mean(0), ridge + eps / trace
        del centred
        if heterogeneous:
            for rows, of_delta in zip(residual.split(STRIP), deltas[place].split(STRIP), strict=True):
                rows.addmm_(of_delta.double(), covariance)
            del of_delta
        del covariance
    estimated.diagonal().add_(ridge)
    if heterogeneous:
        shift /= energies.mean() + 1e-12
        total, share = total_in_float64(deltas), estimated / len(deltas)
        for rows, of_total in zip(residual.split(STRIP), total.split(STRIP), strict=True):
            rows -= of_total @ share
        del total, share, of_total
    factors, merged = lu_factor(estimated.add_(shift)), weighted
    del estimated
    for rows in merged.split(STRIP):
        rows.copy_(lu_solve(*factors, rows, left=False))
    del factors
    if heterogeneous:
        count = int(min(x.shape) * k_frac)
        p, sigma, q = triplets(residual.add_(merged), count)
        for rows, of_p in zip(merged.split(STRIP), p.split(STRIP), strict=True):
            rows += sigma.sum() / max(count, 1) * (of_p @ q)
        del residual, p, q, of_p
    return x.moved(merged.float(), scaling_coefficient)


def is_heterogeneous(energies: Sequence[float]) -> bool:
    """Whether var(log |δi|²) / mean(log |δi|²)² > 0.3, with the unbiased variance."""
    logs = np.log(np.asarray(energies) + 1e-12)
    return len(logs) > 1 and bool(logs.var(ddof=1) / logs.mean() ** 2 > 0.3)
