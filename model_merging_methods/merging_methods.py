"""The merging methods, as formulas on blocks.

These define a merge. They run on GPUs, and the compiled kernels for CPUs give the same values.

A block is a stretch of one parameter: one-dimensional float32 tensors, the same stretch of θ0 (`pretrained`) and of
θ1 … θK (`finetuned`, in model order). A merged block has the same shape.

The order of operations is part of the definition, because results saved in 16 bits show the last bit of a float32: δi
is rounded to float32, multiplied by its ratio and added in model order; the sum is multiplied by the scaling
coefficient s, and θ0 is added last.

Sources: task arithmetic (Ilharco et al. 2023), TIES-Merging (Yadav et al. 2023), M3 (Mixup Model Merge).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds to import, and merges on the CPU do not need it
    from torch import Tensor


@dataclass(frozen=True)
class Coefficients:
    """The numbers in a method's formula.

    ratios: M3's interpolation ratios w1 … wK, or None for the plain method.
    scaling_coefficient: s.
    trim_thresholds: for TIES, t1 … tK, each the k-th smallest |δi| over all parameters of model i.
    majority_sign: for TIES, the sign (+1, −1 or 0) of the sum of the elected signs over all positions.
    mask_thresholds: for masks by magnitude, for each parameter and model the largest magnitude that is dropped.
    """

    ratios: tuple[float, ...] | None = None
    scaling_coefficient: float = 1.0
    trim_thresholds: tuple[float, ...] = ()
    majority_sign: int = 0
    mask_thresholds: Mapping[str, Sequence[float | None]] = field(default_factory=dict, hash=False)


def weighted_sum(terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ wi xi, each product rounded to float32, added in order."""
    total = terms[0] * weights[0]
    for term, weight in zip(terms[1:], weights[1:], strict=True):
        total += term * weight
    return total


def task_vectors(pretrained: Tensor, finetuned: Sequence[Tensor]) -> list[Tensor]:
    """δi = θi − θ0."""
    return [theta - pretrained for theta in finetuned]


def average_merging(pretrained: Tensor | None, finetuned: Sequence[Tensor], using: Coefficients) -> Tensor:
    """The mean of the θi; under M3, Σ wi θi. θ0 is not used.

    The mean divides the sum once, as the published scripts do. Multiplying each term by a rounded 1/K differs in the
    last bit for K = 3.
    """
    if using.ratios is None:
        total = weighted_sum(finetuned, [1.0] * len(finetuned))
        return total / total.new_full((), len(finetuned))  # GPUs multiply by the inverse of a plain number
    return weighted_sum(finetuned, using.ratios)


def task_arithmetic(pretrained: Tensor, finetuned: Sequence[Tensor], using: Coefficients) -> Tensor:
    """θ0 + s · Σ wi δi, with wi = 1 without M3."""
    ratios = using.ratios or [1.0] * len(finetuned)
    deltas = task_vectors(pretrained, finetuned)
    return pretrained + using.scaling_coefficient * weighted_sum(deltas, ratios)


def ties_merging(pretrained: Tensor, finetuned: Sequence[Tensor], using: Coefficients) -> Tensor:
    """θ0 + s · (disjoint merge of the trimmed task vectors that have the elected sign)."""
    trimmed = trimmed_task_vectors(pretrained, finetuned, using.trim_thresholds)
    signs = elect_signs(trimmed, using.majority_sign)
    elected = [keep_sign(tau, signs) for tau in trimmed]
    merged = disjoint_merge(elected) if using.ratios is None else disjoint_mixup(elected, using.ratios)
    return pretrained + using.scaling_coefficient * merged


def trimmed_task_vectors(pretrained: Tensor, finetuned: Sequence[Tensor], thresholds: Sequence[float]) -> list[Tensor]:
    """TIES step 1: δi where |δi| >= ti, 0 elsewhere."""
    deltas = task_vectors(pretrained, finetuned)
    return [delta.where(delta.abs() >= t, 0) for delta, t in zip(deltas, thresholds, strict=True)]


def elect_signs(trimmed: Sequence[Tensor], majority_sign: int) -> Tensor:
    """TIES step 2: the sign of Σi τi, or the majority sign of the whole model where that sum is 0."""
    sign = weighted_sum(trimmed, [1.0] * len(trimmed)).sign()
    return sign.where(sign != 0, majority_sign)


def keep_sign(tau: Tensor, signs: Tensor) -> Tensor:
    """τ where it has the elected sign, 0 elsewhere."""
    return tau.where(tau * signs > 0, 0)


def disjoint_merge(elected: Sequence[Tensor]) -> Tensor:
    """TIES step 3: the mean of the non-zero values at each position, or 0 without any."""
    taking_part = sum((tau != 0).float() for tau in elected)
    return weighted_sum(elected, [1.0] * len(elected)) / taking_part.clamp(min=1.0)


def disjoint_mixup(elected: Sequence[Tensor], ratios: Sequence[float]) -> Tensor:
    """TIES step 3 under M3: Σ wi τi where all K models take part; τ itself where one does.

    Where some but not all of K > 2 models take part: Σ wi τi / Σ wi over those, or their plain mean if these ratios
    sum to 0.
    """
    interpolated = weighted_sum(elected, ratios)
    total = weighted_sum(elected, [1.0] * len(elected))
    presence = [(tau != 0).float() for tau in elected]
    taking_part, ratios_present = sum(presence), weighted_sum(presence, ratios)
    some = (interpolated / ratios_present).where(ratios_present != 0, total / taking_part)
    merged = interpolated.where(taking_part == len(elected), some)
    return merged.where(taking_part > 1, total)


@dataclass(frozen=True)
class MergingMethod:
    """A method's formula, and what it needs.

    reads_pretrained: θ0. has_trimming: trim thresholds and the majority sign, which take separate passes over the whole
    model.
    """

    formula: Callable[[Tensor, Sequence[Tensor], Coefficients], Tensor]
    reads_pretrained: bool = True
    has_trimming: bool = False


MERGING_METHODS = {
    "average_merging": MergingMethod(average_merging, reads_pretrained=False),
    "task_arithmetic": MergingMethod(task_arithmetic),
    "ties_merging": MergingMethod(ties_merging, has_trimming=True),
}
