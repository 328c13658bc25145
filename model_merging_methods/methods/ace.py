"""ACE-Merging: adaptive covariance estimation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np

from model_merging_methods.method import About, Sees, Tensors, merging_method
from model_merging_methods.singular_values import triplets
from model_merging_methods.task_vectors import mean, squared_norm

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(
    paper="ACE-Merging 2026, arXiv 2603.02945; as in its repository",
    sees=Sees.TENSOR,
    memory=lambda m, n, k: 11 * m * n + 4 * n * n,
)
def ace(
    x: Tensors,
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

    if len(x.shape) != 2:
        return x.base + scaling_coefficient * mean(x.deltas)
    deltas = [delta for delta in x.deltas if squared_norm(delta) >= 1e-12]
    if not deltas:
        return x.base.clone()
    energies = np.array([squared_norm(delta) for delta in deltas])
    heterogeneous = is_heterogeneous(energies)
    weighted = x.base.new_zeros(x.shape, dtype=float64)  # Σ Ci Ri
    residual = weighted.clone() if heterogeneous else None  # Σ δi Si
    estimated = weighted.new_zeros(x.shape[1], x.shape[1])  # Σ Ri
    shift, ridge = 0, 0.0
    for delta in deltas:
        delta = delta.double()
        centred = delta - delta.mean(0)
        covariance = centred.T @ centred
        trace = float(covariance.trace()) + 1e-12 if heterogeneous else 1.0
        covariance /= trace
        weighted.addmm_(centred, covariance).add_(centred, alpha=eps / trace)
        estimated += covariance
        shift, ridge = shift + covariance.mean(0), ridge + eps / trace
        if heterogeneous:
            residual.addmm_(delta, covariance)
        del delta, centred, covariance
    estimated.diagonal().add_(ridge)
    if heterogeneous:
        shift /= energies.mean() + 1e-12
        residual -= sum(delta.double() for delta in deltas) @ (estimated / len(deltas))
    merged = solve_right(weighted, estimated.add_(shift))
    if heterogeneous:
        count = int(min(x.shape) * k_frac)
        p, sigma, q = triplets(merged + residual, count)
        merged += sigma.sum() / max(count, 1) * (p @ q)
    return x.base + scaling_coefficient * merged.float()


def is_heterogeneous(energies: Sequence[float]) -> bool:
    """Whether var(log |δi|²) / mean(log |δi|²)² > 0.3, with the unbiased variance."""
    logs = np.log(np.asarray(energies) + 1e-12)
    return len(logs) > 1 and bool(logs.var(ddof=1) / logs.mean() ** 2 > 0.3)


def solve_right(left: Tensor, matrix: Tensor) -> Tensor:
    """left · matrix⁻¹."""
    from torch.linalg import solve

    return solve(matrix, left, left=False)
