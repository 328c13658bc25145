"""TIES-Merging, trimmed over a whole model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from model_merging_methods.method import About, Sees, Tensors, merging_method
from model_merging_methods.statistics import TrimThresholds
from model_merging_methods.task_vectors import total
from model_merging_methods.weighted_sums import weighted_sum

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(
    paper="TIES-Merging (Yadav et al. 2023, arXiv 2306.01708)",
    sees=Sees.BLOCK,
    takes_ratios=True,
    statistics=(TrimThresholds(),),
)
def ties_merging(
    x: Tensors,
    *,
    scaling_coefficient: Annotated[float, About("factor on the merged task vector")] = 1.0,
    param_value_mask_rate: Annotated[float, About("share of each task vector's values that is trimmed", 0, 1)] = 0.5,
) -> Tensor:
    """Trim the task vectors over each whole model, elect a sign at each position, and take the mean of the values that
    have it.

    statistics: `trim_thresholds` ti, the k-th smallest |δi| over all parameters of model i, k = int(n · r); and
    `majority_sign`, the sign (+1, −1 or 0) of the sum of the elected signs over all positions.
    """
    trimmed = trimmed_task_vectors(x.deltas, x.statistics["trim_thresholds"])
    signs = elect_signs(trimmed, x.statistics["majority_sign"])
    elected = [keep_sign(tau, signs) for tau in trimmed]
    merged = disjoint_merge(elected) if x.ratios is None else disjoint_mixup(elected, x.ratios)
    return x.base + scaling_coefficient * merged


def trimmed_task_vectors(deltas: Sequence[Tensor], thresholds: Sequence[float]) -> list[Tensor]:
    """Step 1: δi where |δi| >= ti, 0 elsewhere."""
    return [delta.where(delta.abs() >= t, 0) for delta, t in zip(deltas, thresholds, strict=True)]


def elect_signs(trimmed: Sequence[Tensor], majority_sign: int) -> Tensor:
    """Step 2: the sign of Σi τi, or the majority sign of the whole model where that sum is 0."""
    sign = total(trimmed).sign()
    return sign.where(sign != 0, majority_sign)


def keep_sign(tau: Tensor, signs: Tensor) -> Tensor:
    """τ where it has the elected sign, 0 elsewhere."""
    return tau.where(tau * signs > 0, 0)


def disjoint_merge(elected: Sequence[Tensor]) -> Tensor:
    """Step 3: the mean of the non-zero values at each position, or 0 without any."""
    taking_part = sum((tau != 0).float() for tau in elected)
    return total(elected) / taking_part.clamp(min=1.0)


def disjoint_mixup(elected: Sequence[Tensor], ratios: Sequence[float]) -> Tensor:
    """Step 3 under M3: Σ wi τi where all K models take part; τ itself where one does.

    Where some but not all of K > 2 models take part: Σ wi τi / Σ wi over those, or their plain mean if these ratios
    sum to 0.
    """
    interpolated = weighted_sum(elected, ratios)
    plain = total(elected)
    presence = [(tau != 0).float() for tau in elected]
    taking_part, ratios_present = sum(presence), weighted_sum(presence, ratios)
    some = (interpolated / ratios_present).where(ratios_present != 0, plain / taking_part)
    merged = interpolated.where(taking_part == len(elected), some)
    return merged.where(taking_part > 1, plain)
