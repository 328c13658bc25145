"""ASWUDI: SWUDI with a rank that follows from each matrix."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from model_merging_methods.interference import all_negligible, changed, initial, memory_of_spectrum, spectrum
from model_merging_methods.method import About, Sees, WholeTensor, is_linear_weight, merging_method
from model_merging_methods.task_vectors import mean

if TYPE_CHECKING:
    from torch import Tensor

RULES = ("participation_sqrt", "stable_rank", "entropy", "participation", "gavish_donoho")


@merging_method(
    paper="the repository of OptMerge, WalkerWorldPeace/MLLMerging, 2026",
    sees=Sees.TENSOR,
    merges=is_linear_weight,
    memory=memory_of_spectrum,
)
def aswudi(
    x: WholeTensor,
    *,
    auto_rank_method: Annotated[str, About("how many eigenvectors count", choices=RULES)] = "participation_sqrt",
    init_mode: Annotated[
        str, About("the start; sum needs a scaling_coefficient near 1/K", choices=("sum", "mean", "zero"))
    ] = "mean",
    scaling_coefficient: Annotated[float, About("factor on the merged task vector")] = 1.0,
) -> Tensor:
    """Move the task vectors to the minimum of their interference along as many eigenvectors as a rule counts.

    The interference is that of WUDI. Eigenvalues below 1e-8 count as 1e-8. A model with δi = 0 is left out;
    where all |δi|² are below 1e-12, the mean task vector is added. Eigenvectors are in float64, where the published
    code uses float32.

    By default the start is the mean. The published code starts at the sum, which keeps K times the shared change
    along all other eigenvectors, and scales the result by about 1/K.
    """
    if all_negligible(x.deltas):
        return x.moved(mean(x.deltas), scaling_coefficient)
    deltas = changed(x.deltas)
    curvature = spectrum(deltas)
    rank = max(1, min(effective_rank(curvature.e, x.shape, auto_rank_method), x.shape[1]))
    share = curvature.e.new_ones(rank)
    merged = curvature.minimise(initial(deltas, init_mode), share)
    del curvature
    return x.moved(merged, scaling_coefficient)


def effective_rank(e: Tensor, shape: tuple[int, ...], rule: str) -> int:
    """How many eigenvalues count by a rule."""
    if rule == "gavish_donoho":
        return int((e.sqrt() > gavish_donoho(min(shape) / max(shape)) * e.sqrt().median()).sum())
    p = e / e.sum()
    counts = {
        "participation_sqrt": lambda: e.sqrt().sum().square() / e.sum(),
        "stable_rank": lambda: (e / e[0]).square().sum(),
        "entropy": lambda: (-(p * p.log()).sum()).exp(),
        "participation": lambda: 1 / p.square().sum(),
    }
    return math.ceil(counts[rule]())


def gavish_donoho(beta: float) -> float:
    """The threshold in units of the (lower) median singular value, ω/μ, for matrices with sides in the ratio β."""
    omega = math.sqrt(2 * (beta + 1) + 8 * beta / (beta + 1 + math.sqrt(beta**2 + 14 * beta + 1)))
    mu = math.sqrt(2 + math.sqrt(3)) if beta >= 0.9999 else math.sqrt(max((1 - beta) ** 2 + beta, 1e-3))
    return omega / mu
