"""The compiled formulas: those of `methods/`, value for value, for a chunk of all models.

Inner loops run over the positions, so that the compiler turns them into vector instructions. No kernel may reorder or
fuse the arithmetic of a merged value.
"""

import numpy as np
from numba import types
from numba.extending import intrinsic

from model_merging_methods.kernels.compiling import ONE, ZERO, approximate, exact
from model_merging_methods.kernels.kernel_plan import (
    AVERAGE_MERGING,
    CONSENSUS_TA,
    LINEAR,
    LOCALIZE_AND_STITCH,
    MAGMAX,
    NEARSWAP,
    RAM,
    RAMPLUS_TL,
    TASK_ARITHMETIC,
    TIES_PER_TENSOR,
)

_ALMOST_ZERO = np.float32(1e-8)


@exact
def merge_chunk(plan, start, pretrained, finetuned, deltas, merged, signs, taking_part, interpolated, sums):
    """The method's formula for values from position `start` of the tensor on; `deltas` are overwritten."""
    if plan.method == AVERAGE_MERGING:
        average_merging(finetuned, plan.ratios, plan.has_ratios, merged)
        return
    if plan.method == LINEAR:
        fused_sum(finetuned, plan.ratios, merged)
        divide(merged, plan.divisor)
        return
    if plan.method == NEARSWAP:
        nearswap(pretrained, finetuned[0], plan.numbers[0], merged)
        return
    if plan.method == TASK_ARITHMETIC:
        weighted_sum(deltas, plan.ratios, merged)
        divide(merged, plan.divisor)
    elif plan.method == TIES_PER_TENSOR:
        keep_largest(deltas, plan.trim_thresholds, plan.lasts, start)
        merge_elected(deltas, plan.ratios, plan.elects_by_count, plan.normalizes, merged, signs, taking_part)
    elif plan.method == MAGMAX:
        magmax(deltas, merged)
    elif plan.method == RAM:
        ram(deltas, plan.numbers[0], plan.ones, merged, taking_part)
    elif plan.method == RAMPLUS_TL:
        ram(deltas, plan.numbers[0], plan.numbers[1:], merged, taking_part)
    elif plan.method == CONSENSUS_TA:
        consensus_ta(deltas, plan.numbers[0], plan.numbers[1:], merged, taking_part)
    elif plan.method == LOCALIZE_AND_STITCH:
        localize_and_stitch(deltas, plan.numbers, merged, taking_part)
    else:
        for i in range(deltas.shape[0]):
            sums.models[i, 3] += _count_at_least(deltas[i], plan.trim_thresholds[i])
        trim(deltas, plan.trim_thresholds)
        elect_signs(deltas, plan.majority_sign, plan.ones, signs)
        keep_sign(deltas, signs)
        if plan.has_ratios:
            disjoint_mixup(deltas, plan.ratios, plan.ones, merged, taking_part, interpolated)
        else:
            disjoint_merge(deltas, plan.ones, merged, taking_part)
    for j in range(merged.size):
        merged[j] = pretrained[j] + plan.scaling_coefficient * merged[j]


@intrinsic
def _fused_multiply_add(_context, x, y, z):
    """x y + z of float32 numbers, rounded once."""

    def generate(_context, builder, _signature, arguments):
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


@exact
def weighted_sum(terms, weights, total):
    """`weighted_sums.weighted_sum` into `total`."""
    weight = weights[0]
    for j in range(total.size):
        total[j] = terms[0, j] * weight
    for i in range(1, terms.shape[0]):
        weight = weights[i]
        for j in range(total.size):
            total[j] += terms[i, j] * weight


@exact
def fused_sum(terms, weights, total):
    """The sum of `methods.linear` into `total`: one rounding for each term."""
    weight = weights[0]
    for j in range(total.size):
        total[j] = terms[0, j] * weight
    for i in range(1, terms.shape[0]):
        weight = weights[i]
        for j in range(total.size):
            total[j] = _fused_multiply_add(terms[i, j], weight, total[j])


@exact
def divide(total, divisor):
    """In place; a divisor of 1 changes nothing."""
    if divisor != ONE:
        for j in range(total.size):
            total[j] = total[j] / divisor


@exact
def average_merging(finetuned, ratios, has_ratios, merged):
    weighted_sum(finetuned, ratios, merged)
    if not has_ratios:
        number = np.float32(finetuned.shape[0])
        for j in range(merged.size):
            merged[j] = merged[j] / number


@exact
def trim(deltas, thresholds):
    """TIES step 1, in place."""
    for i in range(deltas.shape[0]):
        threshold = thresholds[i]
        for j in range(deltas.shape[1]):
            deltas[i, j] = deltas[i, j] if abs(deltas[i, j]) >= threshold else ZERO


@exact
def elect_signs(trimmed, majority_sign, ones, signs):
    """TIES step 2 into `signs`."""
    weighted_sum(trimmed, ones, signs)
    for j in range(signs.size):
        sign = sign_of(signs[j])
        signs[j] = sign if sign != ZERO else majority_sign


@exact
def sign_of(x):
    return ONE if x > ZERO else (-ONE if x < ZERO else ZERO)


@exact
def keep_sign(trimmed, signs):
    """τ where it has the elected sign, 0 elsewhere, in place."""
    for i in range(trimmed.shape[0]):
        for j in range(signs.size):
            trimmed[i, j] = trimmed[i, j] if trimmed[i, j] * signs[j] > ZERO else ZERO


@exact
def count_taking_part(elected, taking_part):
    """At each position the number of models whose value is not 0."""
    taking_part[:] = ZERO
    for i in range(elected.shape[0]):
        for j in range(taking_part.size):
            taking_part[j] += ONE if elected[i, j] != ZERO else ZERO


@exact
def disjoint_merge(elected, ones, merged, taking_part):
    """TIES step 3."""
    weighted_sum(elected, ones, merged)
    count_taking_part(elected, taking_part)
    for j in range(merged.size):
        merged[j] = merged[j] / max(taking_part[j], ONE)


@exact
def disjoint_mixup(elected, ratios, ones, merged, taking_part, interpolated):
    """TIES step 3 under M3."""
    models = elected.shape[0]
    weighted_sum(elected, ratios, interpolated)
    weighted_sum(elected, ones, merged)
    count_taking_part(elected, taking_part)
    for j in range(merged.size):
        if models > 2 and taking_part[j] > ONE and taking_part[j] < models:
            total = ratios[0] if elected[0, j] != ZERO else ZERO
            for i in range(1, models):
                total += ratios[i] if elected[i, j] != ZERO else ZERO
            merged[j] = merged[j] / taking_part[j] if total == ZERO else interpolated[j] / total
        else:
            merged[j] = interpolated[j] if taking_part[j] == models else merged[j]


@approximate
def _count_at_least(x, threshold):
    total = ZERO
    for j in range(x.size):
        total += ONE if abs(x[j]) >= threshold else ZERO
    return total


@exact
def keep_largest(deltas, thresholds, lasts, start):
    """`methods.ties_per_tensor`: 0 except above the thresholds, and at them up to position `lasts[i]` of the tensor; in
    place. The deltas begin at position `start`."""
    for i in range(deltas.shape[0]):
        threshold = thresholds[i]
        ends = min(max(lasts[i] + 1 - start, 0), deltas.shape[1])
        for j in range(ends):
            deltas[i, j] = deltas[i, j] if abs(deltas[i, j]) >= threshold else ZERO
        for j in range(ends, deltas.shape[1]):
            deltas[i, j] = deltas[i, j] if abs(deltas[i, j]) > threshold else ZERO


@exact
def merge_elected(trimmed, weights, by_count, normalizes, merged, votes, divisor):
    """`methods.ties_per_tensor` after trimming: the weighted sum, or mean, of the values with the elected sign."""
    votes[:] = ZERO
    for i in range(trimmed.shape[0]):
        weight = weights[i]
        for j in range(votes.size):
            trimmed[i, j] = trimmed[i, j] * weight
        if by_count:
            for j in range(votes.size):
                votes[j] += sign_of(trimmed[i, j])
        else:
            for j in range(votes.size):
                votes[j] += trimmed[i, j]
    merged[:] = ZERO
    divisor[:] = ZERO
    for i in range(trimmed.shape[0]):
        weight = weights[i]
        for j in range(votes.size):
            tau = trimmed[i, j]
            takes_part = tau > ZERO if votes[j] >= ZERO else tau < ZERO
            merged[j] += tau if takes_part else ZERO
            divisor[j] += weight if takes_part else ZERO
    if normalizes:
        for j in range(merged.size):
            merged[j] = merged[j] / (divisor[j] if abs(divisor[j]) >= _ALMOST_ZERO else ONE)


@exact
def magmax(deltas, merged):
    for j in range(merged.size):
        merged[j] = deltas[0, j]
    for i in range(1, deltas.shape[0]):
        for j in range(merged.size):
            merged[j] = deltas[i, j] if abs(deltas[i, j]) >= abs(merged[j]) else merged[j]


@exact
def nearswap(pretrained, finetuned, t, merged):
    for j in range(merged.size):
        w = t * (ONE / max(abs(pretrained[j] - finetuned[j]), np.float32(1e-6)))  # as torch divides a number
        w = min(max(w, ZERO), ONE)
        merged[j] = w * finetuned[j] + (ONE - w) * pretrained[j]


@exact
def ram(deltas, epsilon, factors, merged, counts):
    """RAM+; factors of 1 make it RAM."""
    count_active(deltas, epsilon, counts)
    merged[:] = ZERO
    for i in range(deltas.shape[0]):
        factor = factors[i]
        for j in range(merged.size):
            change = deltas[i, j] / counts[j] if counts[j] > ONE else deltas[i, j] * factor
            merged[j] += change if abs(deltas[i, j]) > epsilon else ZERO


@exact
def count_active(deltas, epsilon, counts):
    """At each position how many models changed the value."""
    counts[:] = ZERO
    for i in range(deltas.shape[0]):
        for j in range(counts.size):
            counts[j] += ONE if abs(deltas[i, j]) > epsilon else ZERO


@exact
def consensus_ta(deltas, k, mask_lambda, merged, votes):
    for j in range(merged.size):
        merged[j] = deltas[0, j]
    for i in range(1, deltas.shape[0]):
        for j in range(merged.size):
            merged[j] += deltas[i, j]
    votes[:] = ZERO
    for i in range(deltas.shape[0]):
        own = mask_lambda[i]
        for j in range(merged.size):
            votes[j] += ONE if abs(deltas[i, j]) > abs(merged[j] - deltas[i, j]) * own else ZERO
    for j in range(merged.size):
        merged[j] = merged[j] * (ONE if votes[j] >= k else ZERO)


@exact
def localize_and_stitch(deltas, thresholds, merged, overlap):
    overlap[:] = ZERO
    for i in range(deltas.shape[0]):
        for j in range(merged.size):
            overlap[j] += ONE if abs(deltas[i, j]) >= thresholds[i] else ZERO
    merged[:] = -ZERO  # so that a sum of −0 stays −0, as in the formula
    for i in range(deltas.shape[0]):
        for j in range(merged.size):
            share = (ONE if abs(deltas[i, j]) >= thresholds[i] else ZERO) / max(overlap[j], ONE)
            merged[j] += share * deltas[i, j]
