"""Compiled block kernels for the CPU: the formulas of `methods/` and `mask_weights`, value for value. Compiled array
notation, of which formulas and kernels could share one text, took 2 to 29 times as long as these loops.

Tests compare every kernel with those plain versions, bit for bit. A block's values pass through chunks that stay in a
core's first cache: decoded to float32, compared with each other, masked, merged, encoded. Inner loops run over the
positions, so that the compiler turns them into vector instructions. No kernel may reorder or fuse the arithmetic of a
merged value: only statistics use `fastmath`.

All kernels that call each other are in this file, because numba's cache on the disk notices changes of a kernel's own
file only.
"""

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from model_merging_methods.kernels.stored_dtypes import BF16, F16, F32, F64

CHUNK = 1024  # values
_GROUP = 64  # positions that are examined one by one if any of them is undecided

# Methods and masks as codes.
AVERAGE_MERGING, TASK_ARITHMETIC, TIES_MERGING, TIES_PER_TENSOR, LINEAR = range(5)
CONSENSUS_TA, LOCALIZE_AND_STITCH, MAGMAX, NEARSWAP, RAM, RAMPLUS_TL = range(5, 11)
NO_MASK, RANDOM_MASK, MAGNITUDE_MASK = range(3)
MASK_NUMBERS = 5  # of a parameter and model, see `StoredBlock`

ZERO, ONE = np.float32(0), np.float32(1)
_ALMOST_ZERO = np.float32(1e-8)
_INFINITY = np.int32(0x7F800000)  # as a bit pattern; those of NaNs are larger

# SplitMix64.
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)

_COMPILED = {"cache": True, "nogil": True, "error_model": "numpy"}
# Without numba's counts of references to arrays, which took a third of the time. A kernel that makes or returns an
# array, or calls one that returns one, needs the counts.
exact = njit(**_COMPILED, _nrt=False)
approximate = njit(**_COMPILED, _nrt=False, fastmath={"reassoc", "contract"})
exact_with_arrays = njit(**_COMPILED, _nrt=True)


@intrinsic
def _half_to_float(_context, pattern):
    """float32 of the float16 whose bits are a uint16."""

    def generate(_context, builder, _signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def _float_to_half(_context, value):
    """The bits of a float32 rounded to the nearest float16, ties to even."""

    def generate(_context, builder, _signature, arguments):
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


@intrinsic
def _fused_multiply_add(_context, x, y, z):
    """x y + z of float32 numbers, rounded once."""

    def generate(_context, builder, _signature, arguments):
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


@exact
def decode(raw, dtype, first, values):
    """Stored values `first` … of `raw` (bytes, of the dtype with that code) as float32, filling `values`."""
    last = first + values.size
    if dtype == F16:
        halves = raw.view(np.uint16)[first:last]
        for j in range(values.size):
            values[j] = _half_to_float(halves[j])
    elif dtype == BF16:
        patterns = values.view(np.uint32)
        high = raw.view(np.uint16)[first:last]
        for j in range(values.size):
            patterns[j] = np.uint32(high[j]) << np.uint32(16)
    elif dtype == F32:
        floats = raw.view(np.float32)[first:last]
        for j in range(values.size):
            values[j] = floats[j]
    elif dtype == F64:
        doubles = raw.view(np.float64)[first:last]
        for j in range(values.size):
            values[j] = np.float32(doubles[j])


@exact
def all_finite(values):
    """Whether no value is infinite or NaN."""
    patterns = values.view(np.int32)
    largest = np.int32(0)
    for j in range(values.size):
        largest = max(largest, patterns[j] & np.int32(0x7FFFFFFF))
    return largest < _INFINITY


@exact
def encode(values, dtype, first, raw):
    """Round float32 `values` to the dtype with that code and put them at position `first` of `raw` (bytes).

    Returns whether all are finite after rounding.
    """
    last = first + values.size
    if dtype == F16:
        halves = raw.view(np.uint16)[first:last]
        largest = np.uint16(0)
        for j in range(values.size):
            halves[j] = _float_to_half(values[j])
            largest = max(largest, halves[j] & np.uint16(0x7FFF))
        return largest < np.uint16(0x7C00)
    if dtype == BF16:
        patterns = values.view(np.uint32)
        high = raw.view(np.uint16)[first:last]
        largest = np.uint16(0)
        for j in range(values.size):
            to_even = np.uint32(0x7FFF) + ((patterns[j] >> np.uint32(16)) & np.uint32(1))
            high[j] = np.uint16((patterns[j] + to_even) >> np.uint32(16))
            largest = max(largest, high[j] & np.uint16(0x7FFF))
        return all_finite(values) and largest < np.uint16(0x7F80)
    if dtype == F64:
        doubles = raw.view(np.float64)[first:last]
        for j in range(values.size):
            doubles[j] = values[j]
    else:
        floats = raw.view(np.float32)[first:last]
        for j in range(values.size):
            floats[j] = values[j]
    return all_finite(values)


@exact
def random_word(key, counter):
    """SplitMix64's output function at `counter` of the stream that starts at `key`; unsigned 64-bit integers."""
    z = counter * _INCREMENT + key
    z = (z ^ (z >> np.uint64(30))) * _MULTIPLIER_1
    z = (z ^ (z >> np.uint64(27))) * _MULTIPLIER_2
    return z ^ (z >> np.uint64(31))


@exact_with_arrays
def random_keep_mask(key, start, mask_rate, keep):
    """Fill `keep` (float32) for positions `start` … with 0 where `mask_weights.random_drop_mask` drops, else 1."""
    if mask_rate >= 1:
        keep[:] = ZERO
        return
    first, last = start // 4, (start + keep.size + 3) // 4
    words = np.empty(last - first, np.uint64)
    for j in range(words.size):
        words[j] = random_word(key, np.uint64(first) + np.uint64(j))
    level = int(mask_rate * 65536)
    bound = np.int32(level - 32768)
    lanes = words.view(np.int16)[start - first * 4 :]
    level_ones = np.int32(0)
    for j in range(keep.size):
        lane = np.int32(lanes[j])
        keep[j] = ONE if lane >= bound else ZERO
        level_ones += np.int32(lane == bound)
    if level_ones:
        finer_bound = (mask_rate * 65536 - level) * 2.0**62
        for j in range(keep.size):
            if lanes[j] == bound:
                finer = random_word(~key, np.uint64(start + j)) >> np.uint64(1) & np.uint64(2**62 - 1)
                keep[j] = ZERO if float(finer) < finer_bound else ONE


@exact_with_arrays
def magnitude_keep_mask(values, start, numbers, keep):
    """Fill `keep` with 1 for the values that `mask_weights.magnitude_keep_mask` keeps, else 0."""
    _mark_largest(values, start, np.float32(numbers[0]), np.int64(numbers[1]), keep)
    if numbers[2] < np.inf:
        too_large = np.empty_like(keep)
        _mark_largest(values, start, np.float32(numbers[2]), np.int64(numbers[3]), too_large)
        for j in range(keep.size):
            keep[j] = keep[j] if too_large[j] == ZERO else ZERO


@exact
def _mark_largest(values, start, threshold, last, marked):
    """1 where |x| is above a threshold, or equal to it up to position `last` of the tensor, else 0."""
    ends = min(max(last + 1 - start, 0), values.size)
    for j in range(ends):
        marked[j] = ONE if abs(values[j]) >= threshold else ZERO
    for j in range(ends, values.size):
        marked[j] = ONE if abs(values[j]) > threshold else ZERO


@exact
def apply_mask(values, keep, divisor, factor):
    """`mask_weights.apply_mask`, in place; survivors are divided and multiplied, by 1 as a rule."""
    if divisor == ONE:
        for j in range(values.size):
            values[j] = values[j] * keep[j]
    else:
        for j in range(values.size):
            values[j] = values[j] * keep[j] / divisor
    if factor != ONE:
        for j in range(values.size):
            values[j] = values[j] * factor


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
def task_vectors(pretrained, finetuned, deltas):
    """δi = θi − θ0."""
    for i in range(finetuned.shape[0]):
        for j in range(pretrained.size):
            deltas[i, j] = finetuned[i, j] - pretrained[j]


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
        sign = _sign(signs[j])
        signs[j] = sign if sign != ZERO else majority_sign


@exact
def _sign(x):
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
                votes[j] += _sign(trimmed[i, j])
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
    _count_active(deltas, epsilon, counts)
    merged[:] = ZERO
    for i in range(deltas.shape[0]):
        factor = factors[i]
        for j in range(merged.size):
            change = deltas[i, j] / counts[j] if counts[j] > ONE else deltas[i, j] * factor
            merged[j] += change if abs(deltas[i, j]) > epsilon else ZERO


@exact
def _count_active(deltas, epsilon, counts):
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


class KernelPlan(NamedTuple):
    """A merge's parameters for the kernels. Arrays (float32; `mask_rates` float64, `lasts` int64) have one entry per
    fine-tuned model; without M3 or weights, `ratios` are ones. The sum is divided by `divisor`. `numbers` (float32) are
    those of a method that has none of the others."""

    method: int
    reads_pretrained: bool
    has_ratios: bool
    ratios: np.ndarray
    ones: np.ndarray
    divisor: np.float32
    scaling_coefficient: np.float32
    trim_thresholds: np.ndarray
    majority_sign: np.float32
    lasts: np.ndarray
    normalizes: bool
    elects_by_count: bool
    numbers: np.ndarray
    mask: int
    masks_deltas: bool
    rounds_masked: bool
    mask_rates: np.ndarray
    divisors: np.ndarray


class StoredBlock(NamedTuple):
    """The same stretch of a parameter in all models: `size` values from position `start` on.

    stored: their bytes, one row per model, the pretrained one's first; dtypes: their codes. For the masks of this
    parameter, one per fine-tuned model: mask_keys (uint64), and mask_numbers, float64 [K, 5]. Kept are magnitudes above
    the first number, and at it up to the position in the second; of these dropped are those above the third, and at it
    up to the fourth. The fifth multiplies the survivors.
    """

    start: int
    size: int
    stored: np.ndarray
    dtypes: np.ndarray
    mask_keys: np.ndarray
    mask_numbers: np.ndarray


class Sums(NamedTuple):
    """Sums over positions, float64, where x is δ, or θ if the pretrained model is not read.

    whole, shape [2]: Σ θ0², the number of positions.
    models, shape [K, 4]: Σ x²; the numbers of x that are 0, that the mask keeps, that trimming keeps.
    pairs, shape [K, K, 4], for i < j: Σ xi xj and the number of opposite signs; for weights Σ (xi − xj)² and the number
    of equal ones.
    """

    whole: np.ndarray
    models: np.ndarray
    pairs: np.ndarray

    @staticmethod
    def width(models: int) -> int:
        """How many numbers the sums of K models have."""
        return 2 + 4 * models + 4 * models * models

    @staticmethod
    def of(numbers: np.ndarray, models: int) -> "Sums":
        """A view of `width` numbers (float64) as the sums of K models."""
        pairs = 2 + 4 * models
        return Sums(numbers[:2], numbers[2:pairs].reshape(models, 4), numbers[pairs:].reshape(models, models, 4))


@approximate
def _sum_of_squares(x):
    total = ZERO
    for j in range(x.size):
        total += x[j] * x[j]
    return total


@approximate
def _model_sums(x):
    """Σ x², and how many are 0."""
    squares, zeros = ZERO, ZERO
    for j in range(x.size):
        squares += x[j] * x[j]
        zeros += ONE if x[j] == ZERO else ZERO
    return squares, zeros


@approximate
def _task_vector_sums(x, y):
    """Σ x y, and how many have opposite signs."""
    products, conflicts = ZERO, ZERO
    for j in range(x.size):
        product = x[j] * y[j]
        products += product
        conflicts += ONE if product < ZERO else ZERO
    return products, conflicts


@approximate
def _weight_sums(x, y):
    """Σ x y, Σ (x − y)², and how many are equal."""
    products, distance, equal = ZERO, ZERO, ZERO
    for j in range(x.size):
        difference = x[j] - y[j]
        products += x[j] * y[j]
        distance += difference * difference
        equal += ONE if difference == ZERO else ZERO
    return products, distance, equal


@approximate
def _sum(x):
    total = ZERO
    for j in range(x.size):
        total += x[j]
    return total


@approximate
def _count_at_least(x, threshold):
    total = ZERO
    for j in range(x.size):
        total += ONE if abs(x[j]) >= threshold else ZERO
    return total


@exact
def _compare(reads_pretrained, pretrained, finetuned, x, sums):
    """Add the unmasked models to `sums`; x are the task vectors, or the weights.

    Returns a bit for each model (the first the pretrained one's) with values that are not finite.
    """
    models = x.shape[0]
    not_finite = 0
    sums.whole[1] += x.shape[1]
    if reads_pretrained:
        squares = _sum_of_squares(pretrained)
        sums.whole[0] += squares
        if not np.isfinite(squares) and not all_finite(pretrained):
            not_finite |= 1
    for i in range(models):
        squares, zeros = _model_sums(x[i])
        sums.models[i, 0] += squares
        sums.models[i, 1] += zeros
        if not np.isfinite(squares) and not all_finite(finetuned[i]):
            not_finite |= 2 << i
        for k in range(i + 1, models):
            if reads_pretrained:
                products, conflicts = _task_vector_sums(x[i], x[k])
                sums.pairs[i, k, 0] += products
                sums.pairs[i, k, 1] += conflicts
            else:
                products, distance, equal = _weight_sums(x[i], x[k])
                sums.pairs[i, k, 0] += products
                sums.pairs[i, k, 2] += distance
                sums.pairs[i, k, 3] += equal
    return not_finite


@exact
def _mask(plan, block, first, pretrained, finetuned, deltas, keep, sums_of_models):
    """Mask the models in place."""
    for i in range(finetuned.shape[0]):
        values = deltas[i] if plan.masks_deltas else finetuned[i]
        _keep_mask(plan, block, first, i, values, keep)
        sums_of_models[i, 2] += _sum(keep)
        apply_mask(values, keep, plan.divisors[i], np.float32(block.mask_numbers[i, 4]))
        if plan.masks_deltas:
            for j in range(values.size):
                finetuned[i, j] = pretrained[j] + values[j]
    if plan.reads_pretrained and (plan.rounds_masked or not plan.masks_deltas):
        task_vectors(pretrained, finetuned, deltas)


@exact
def _keep_mask(plan, block, first, model, values, keep):
    """Fill `keep` with 1 where the mask keeps a model's values from position `first` of the block on, else 0."""
    if plan.mask == RANDOM_MASK:
        random_keep_mask(block.mask_keys[model], block.start + first, plan.mask_rates[model], keep)
    else:
        magnitude_keep_mask(values, block.start + first, block.mask_numbers[model], keep)


@exact
def _load(plan, block, first, pretrained, finetuned, deltas):
    """Decode a chunk of all models, and its task vectors if the pretrained model is read."""
    if plan.reads_pretrained:
        decode(block.stored[0], block.dtypes[0], first, pretrained)
    for i in range(finetuned.shape[0]):
        decode(block.stored[i + 1], block.dtypes[i + 1], first, finetuned[i])
    if plan.reads_pretrained:
        task_vectors(pretrained, finetuned, deltas)


@exact
def _merge(plan, start, pretrained, finetuned, deltas, merged, signs, taking_part, interpolated, sums):
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


@exact_with_arrays
def merge_block(plan, block, output_dtype, output, sums):
    """Merge a block into `output` (bytes of the dtype with that code), adding to `sums`. If `output` is empty, only
    compare the models.

    Returns 0; or −1 if a merged value does not fit the dtype; or, if models hold values that are not finite, a bit for
    each of them (the first the pretrained model's).
    """
    models = block.stored.shape[0] - 1
    chunks = np.empty(2 * models * CHUNK, np.float32)
    rows = np.empty((6, CHUNK), np.float32)
    not_finite = 0
    fits = True
    for first in range(0, block.size, CHUNK):
        size = min(CHUNK, block.size - first)
        finetuned = chunks[: models * size].reshape(models, size)
        deltas = chunks[models * CHUNK : models * (CHUNK + size)].reshape(models, size)
        pretrained, merged, keep = rows[0, :size], rows[1, :size], rows[2, :size]
        _load(plan, block, first, pretrained, finetuned, deltas)
        x = deltas if plan.reads_pretrained else finetuned
        not_finite |= _compare(plan.reads_pretrained, pretrained, finetuned, x, sums)
        if output.size == 0:
            continue
        if plan.mask != NO_MASK:
            _mask(plan, block, first, pretrained, finetuned, deltas, keep, sums.models)
        spare = rows[3, :size], rows[4, :size], rows[5, :size]
        _merge(plan, block.start + first, pretrained, finetuned, deltas, merged, *spare, sums)
        fits &= encode(merged, output_dtype, first, output)
    return not_finite if not_finite or fits else -1


@exact_with_arrays
def merge_values(plan, start, pretrained, values, are_deltas, merged):
    """Merge float32 values from position `start` of a tensor on into `merged` [size]: of θ0 [size] and of the models
    [K, size], their task vectors if `are_deltas`, else their weights."""
    models = values.shape[0]
    chunks = np.empty(2 * models * CHUNK, np.float32)
    spare = np.empty((3, CHUNK), np.float32)
    sums = Sums(np.zeros(2), np.zeros((models, 4)), np.zeros((models, models, 4)))
    for first in range(0, merged.size, CHUNK):
        size = min(CHUNK, merged.size - first)
        finetuned = chunks[: models * size].reshape(models, size)
        deltas = chunks[models * CHUNK : models * (CHUNK + size)].reshape(models, size)
        base, own = pretrained[first : first + size], merged[first : first + size]
        for i in range(models):
            for j in range(size):
                deltas[i, j] = values[i, first + j]
                finetuned[i, j] = base[j] + deltas[i, j] if are_deltas else deltas[i, j]
        rows = spare[0, :size], spare[1, :size], spare[2, :size]
        _merge(plan, start + first, base, finetuned, deltas, own, *rows, sums)


@intrinsic
def _add_in_lanes(_context, x, y, lanes):
    """Σ x x, Σ x y and Σ y y of float32 arrays in float64, one in each row of `lanes` (float64 [3, 8]): lane l gets the
    positions l, l + 8, l + 16 … in order.

    Written for vectors of eight, because the compiler adds scalars one by one; the three sums do not wait for each
    other. Positions after the last eight are left out.
    """

    def generate(context, builder, signature, arguments):
        pairs = zip(signature.args, arguments, strict=True)
        arrays = [context.make_array(kind)(context, builder, array) for kind, array in pairs]
        floats, doubles = ir.VectorType(ir.FloatType(), 8), ir.VectorType(ir.DoubleType(), 8)
        eight = ir.Constant(ir.IntType(64), 8)
        totals = [cgutils.alloca_once_value(builder, ir.Constant(doubles, [0.0] * 8)) for _ in range(3)]
        with cgutils.for_range(builder, builder.udiv(builder.extract_value(arrays[0].shape, 0), eight)) as loop:
            first = builder.mul(loop.index, eight)
            places = [builder.bitcast(builder.gep(of.data, [first]), floats.as_pointer()) for of in arrays[:2]]
            x, y = (builder.fpext(builder.load(place, align=4), doubles) for place in places)
            for total, factors in zip(totals, ((x, x), (x, y), (y, y)), strict=True):
                builder.store(builder.fadd(builder.load(total), builder.fmul(*factors)), total)
        rows = builder.bitcast(arrays[2].data, doubles.as_pointer())
        for number, total in enumerate(totals):
            place = builder.gep(rows, [ir.Constant(ir.IntType(64), number)])
            builder.store(builder.load(total), place, align=8)
        return context.get_dummy_value()

    return types.void(x, y, lanes), generate


@exact
def _products(x, y, lanes):
    """Σ x x, Σ x y and Σ y y in float64, each in eight interleaved sums that are added in a fixed order. `lanes` is
    room for them, float64 [3, 8]."""
    _add_in_lanes(x, y, lanes)
    xx, xy, yy = _sum_of_lanes(lanes[0]), _sum_of_lanes(lanes[1]), _sum_of_lanes(lanes[2])
    for j in range(x.size // 8 * 8, x.size):
        one, other = np.float64(x[j]), np.float64(y[j])
        xx += one * one
        xy += one * other
        yy += other * other
    return xx, xy, yy


@exact
def _sum_of_lanes(lanes):
    return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]))


@exact_with_arrays
def gram_block(plan, of_task_vectors, block, gram):
    """Add a block's inner products to `gram`, float64 [K, K]: of the masked models' task vectors, or of their weights.
    Returns a bit for each model with values that are not finite."""
    models = block.stored.shape[0] - 1
    chunks = np.empty(2 * models * CHUNK, np.float32)
    rows = np.empty((2, CHUNK), np.float32)
    no_sums, lanes = np.zeros((models, 4)), np.empty((3, 8))
    not_finite = 0
    for first in range(0, block.size, CHUNK):
        size = min(CHUNK, block.size - first)
        finetuned = chunks[: models * size].reshape(models, size)
        deltas = chunks[models * CHUNK : models * (CHUNK + size)].reshape(models, size)
        pretrained = rows[0, :size]
        _load(plan, block, first, pretrained, finetuned, deltas)
        if plan.mask != NO_MASK:
            _mask(plan, block, first, pretrained, finetuned, deltas, rows[1, :size], no_sums)
        squares = _add_products(deltas if of_task_vectors else finetuned, lanes, gram)
        if not np.isfinite(squares) or (plan.reads_pretrained and not of_task_vectors):
            _load(plan, block, first, pretrained, finetuned, deltas)  # unmasked
            not_finite |= _not_finite(plan, pretrained, finetuned)
    for i in range(models):
        for k in range(i):
            gram[i, k] = gram[k, i]
    return not_finite


@exact
def _not_finite(plan, pretrained, finetuned):
    """A bit for each model with values that are not finite."""
    bits = 1 if plan.reads_pretrained and not all_finite(pretrained) else 0
    for i in range(finetuned.shape[0]):
        if not all_finite(finetuned[i]):
            bits |= 2 << i
    return bits


@exact
def _add_products(x, lanes, gram):
    """Add the inner products of the rows of `x` to the upper triangle of `gram`. Returns the sum of their squares."""
    models = x.shape[0]
    squares = 0.0
    if models == 1:
        squares, _, _ = _products(x[0], x[0], lanes)
        gram[0, 0] += squares
    for i in range(models):
        for k in range(i + 1, models):
            own, between, others = _products(x[i], x[k], lanes)
            gram[i, k] += between
            if k == i + 1:
                gram[i, i] += own
                squares += own
            if i == models - 2:
                gram[k, k] += others
                squares += others
    return squares


@exact_with_arrays
def mask_sums(plan, block, sums):
    """Add to `sums`, float64 [K, 2], the sum of the magnitudes that the mask is applied to, and that of those it keeps.
    Returns a bit for each model with values that are not finite."""
    models = block.stored.shape[0] - 1
    room = np.empty((2 * models + 2) * CHUNK, np.float32)
    lanes = np.empty((3, 8))
    not_finite = 0
    for first in range(0, block.size, CHUNK):
        pretrained, finetuned, deltas = _load_chunk(plan, block, first, room, False)
        keep = room[(2 * models + 1) * CHUNK : (2 * models + 1) * CHUNK + pretrained.size]
        not_finite |= _not_finite(plan, pretrained, finetuned)
        for i in range(models):
            values = deltas[i] if plan.masks_deltas else finetuned[i]
            _keep_mask(plan, block, first, i, values, keep)
            for j in range(values.size):
                values[j] = abs(values[j])
            sums[i, 1] += _products(values, keep, lanes)[1]
            keep[:] = ONE
            sums[i, 0] += _products(values, keep, lanes)[1]
    return not_finite


@exact_with_arrays
def count_changes(plan, block, counts):
    """Add to `counts`, float64 [K, 2], at how many positions a masked model and others, and it alone, have |δ| above
    the first of the plan's numbers. Returns a bit for each model with values that are not finite."""
    models = block.stored.shape[0] - 1
    epsilon = plan.numbers[0]
    room = np.empty((2 * models + 2) * CHUNK, np.float32)
    active, no_sums = np.empty(CHUNK, np.float32), np.zeros((models, 4))
    not_finite = 0
    for first in range(0, block.size, CHUNK):
        pretrained, finetuned, deltas = _load_chunk(plan, block, first, room, False)
        not_finite |= _not_finite(plan, pretrained, finetuned)
        changed = active[: pretrained.size]
        if plan.mask != NO_MASK:
            _mask(plan, block, first, pretrained, finetuned, deltas, changed, no_sums)
        _count_active(deltas, epsilon, changed)
        for i in range(models):
            shared, alone = np.int32(0), np.int32(0)
            for j in range(changed.size):
                is_active = abs(deltas[i, j]) > epsilon
                shared += np.int32(is_active & (changed[j] > ONE))
                alone += np.int32(is_active & (changed[j] == ONE))
            counts[i, 0] += shared
            counts[i, 1] += alone
    return not_finite


@exact_with_arrays
def load_masked(plan, block, first, length, rows, sums):
    """Put `length` values from position `first` of the block on into `rows`, float32 [2K + 1, length or more]: θ0, the
    masked models, and their task vectors if the pretrained model is read. Adds the unmasked models to `sums`.

    Returns a bit for each model with values that are not finite.
    """
    models = block.stored.shape[0] - 1
    chunks = np.empty(2 * models * CHUNK, np.float32)
    own = np.empty((2, CHUNK), np.float32)
    not_finite = 0
    for start in range(0, length, CHUNK):
        size = min(CHUNK, length - start)
        finetuned = chunks[: models * size].reshape(models, size)
        deltas = chunks[models * CHUNK : models * (CHUNK + size)].reshape(models, size)
        pretrained = own[0, :size]
        _load(plan, block, first + start, pretrained, finetuned, deltas)
        x = deltas if plan.reads_pretrained else finetuned
        not_finite |= _compare(plan.reads_pretrained, pretrained, finetuned, x, sums)
        if plan.mask != NO_MASK:
            _mask(plan, block, first + start, pretrained, finetuned, deltas, own[1, :size], sums.models)
        rows[0, start : start + size] = pretrained
        for i in range(models):
            rows[1 + i, start : start + size] = finetuned[i]
            if plan.reads_pretrained:
                rows[1 + models + i, start : start + size] = deltas[i]
    return not_finite


@exact
def _pattern(x):
    """The bits of |x|, which are in the order of the magnitudes."""
    return np.float32(abs(x)).view(np.int32)


@exact
def _count_against(values, low, high, undecided):
    """How many |x| are below the pattern `low`, how many up to `high`, and the largest pattern. Adds 1 to `undecided`
    where low <= |x| < high."""
    patterns = values.view(np.int32)
    below, up_to, largest = np.int32(0), np.int32(0), np.int32(0)
    for j in range(values.size):
        pattern = patterns[j] & np.int32(0x7FFFFFFF)
        below += np.int32(pattern < low)
        up_to += np.int32(pattern <= high)
        undecided[j] += np.int32((pattern >= low) & (pattern < high))
        largest = max(largest, pattern)
    return below, up_to, largest


@exact
def _sum_of_decided_signs(values, highs, undecided, total):
    """Σ sign(Σi τi) over the positions where every τi is known: trimmed below the pattern `highs[i]`."""
    total[:] = ZERO
    for i in range(values.shape[0]):
        patterns = values[i].view(np.int32)
        high = highs[i]
        for j in range(total.size):
            total[j] += values[i, j] if (patterns[j] & np.int32(0x7FFFFFFF)) >= high else ZERO
    signs = np.int32(0)
    for j in range(total.size):
        sign = np.int32(total[j] > ZERO) - np.int32(total[j] < ZERO)
        signs += sign if undecided[j] == 0 else np.int32(0)
    return signs


@exact
def _sign_with(values, j, highs, kept):
    """The sign of Σi τi at position j if only model `kept`'s undecided value is kept (−1: none)."""
    total = ZERO
    for i in range(values.shape[0]):
        if i == kept or _pattern(values[i, j]) >= highs[i]:
            total += values[i, j]
    return np.int8(_sign(total))


@exact_with_arrays
def load_magnitudes(plan, block, masked, magnitudes):
    """Put |x| of a block into `magnitudes`, float32 [K, size], of the values that `count_block` counts."""
    models = block.stored.shape[0] - 1
    finetuned = np.empty((models, block.size), np.float32)
    deltas = np.empty((models, block.size), np.float32)
    pretrained, keep = np.empty(block.size, np.float32), np.empty(block.size, np.float32)
    _load(plan, block, 0, pretrained, finetuned, deltas)
    not_finite = _not_finite(plan, pretrained, finetuned)
    if masked and plan.mask != NO_MASK:
        _mask(plan, block, 0, pretrained, finetuned, deltas, keep, np.zeros((models, 4)))
    magnitudes[:] = np.abs(deltas if plan.reads_pretrained and (masked or plan.masks_deltas) else finetuned)
    return not_finite


class Brackets(NamedTuple):
    """For each model the patterns between which its threshold is expected (int32), and by how many bits the patterns in
    between are shifted right to count them in bins."""

    lows: np.ndarray
    highs: np.ndarray
    shifts: np.ndarray


class Undecided(NamedTuple):
    """Room for a block's values inside their brackets: each one's model, its bin, and the sign of its position's sum if
    it is kept and if it is trimmed. If several models are undecided at one position, these signs are 0, and `values`
    takes all models' values there, one row per position.
    """

    models: np.ndarray
    bins: np.ndarray
    signs_kept: np.ndarray
    signs_trimmed: np.ndarray
    values: np.ndarray


@exact
def _has_any(undecided):
    """Whether any is not 0."""
    together = np.int32(0)
    for j in range(undecided.size):
        together |= undecided[j]
    return together != 0


@exact_with_arrays
def count_block(plan, block, brackets, masked, counts, undecided_values):
    """Compare a block's magnitudes with brackets: of the masked task vectors if `masked`, else of the values that the
    mask is applied to (of the weights if the pretrained model is not read).

    Adds to each model's row of `counts` (int64) how many are below its bracket, and how many up to its end. Returns a
    bit for each model with NaNs, the sum of signs over decided positions, and how many rows of `undecided_values` (and
    of its `values`, which are not stored beyond its length) were filled.
    """
    models = block.stored.shape[0] - 1
    chunks = np.empty(2 * models * CHUNK, np.float32)
    rows = np.empty((3, CHUNK), np.float32)
    undecided_room = np.empty(CHUNK, np.int32)
    no_sums = np.zeros((models, 4))
    lows, highs, shifts = brackets
    noted_models, noted_bins, signs_kept, signs_trimmed, noted_values = undecided_values
    not_finite = 0
    signs = 0
    found = 0
    shared = 0
    for first in range(0, block.size, CHUNK):
        size = min(CHUNK, block.size - first)
        finetuned = chunks[: models * size].reshape(models, size)
        deltas = chunks[models * CHUNK : models * (CHUNK + size)].reshape(models, size)
        pretrained = rows[0, :size]
        _load(plan, block, first, pretrained, finetuned, deltas)
        if masked and plan.mask != NO_MASK:
            _mask(plan, block, first, pretrained, finetuned, deltas, rows[1, :size], no_sums)
        values = deltas if plan.reads_pretrained and (masked or plan.masks_deltas) else finetuned
        undecided = undecided_room[:size]
        undecided[:] = np.int32(0)
        for i in range(models):
            below, up_to, largest = _count_against(values[i], lows[i], highs[i], undecided)
            counts[i, 0] += below
            counts[i, 1] += up_to
            if largest > _INFINITY:
                not_finite |= 1 if plan.reads_pretrained and not all_finite(pretrained) else 2 << i
        signs += _sum_of_decided_signs(values, highs, undecided, rows[2, :size])
        for group in range(0, size, _GROUP):
            if not _has_any(undecided[group : group + _GROUP]):
                continue
            for j in range(group, min(group + _GROUP, size)):
                if undecided[j] == 0:
                    continue
                alone = undecided[j] == 1
                for i in range(models):
                    pattern = _pattern(values[i, j])
                    if lows[i] <= pattern < highs[i]:
                        noted_models[found] = i
                        noted_bins[found] = (pattern - lows[i]) >> shifts[i]
                        signs_kept[found] = _sign_with(values, j, highs, i) if alone else 0
                        signs_trimmed[found] = _sign_with(values, j, highs, -1) if alone else 0
                        found += 1
                if undecided[j] > 1:
                    if shared < noted_values.shape[0]:
                        noted_values[shared, :] = values[:, j]
                    shared += 1
    return not_finite, signs, found, shared


@exact_with_arrays
def _load_chunk(plan, block, first, room, masked):
    """θ0, the models and their task vectors from position `first` of the block on, after the mask if `masked`: views of
    `room`, float32 of (2K + 2) · CHUNK."""
    models = block.stored.shape[0] - 1
    size = min(CHUNK, block.size - first)
    finetuned = room[: models * size].reshape(models, size)
    deltas = room[models * CHUNK : models * (CHUNK + size)].reshape(models, size)
    pretrained = room[2 * models * CHUNK : 2 * models * CHUNK + size]
    _load(plan, block, first, pretrained, finetuned, deltas)
    if masked and plan.mask != NO_MASK:
        keep = room[(2 * models + 1) * CHUNK : (2 * models + 1) * CHUNK + size]
        _mask(plan, block, first, pretrained, finetuned, deltas, keep, np.zeros((models, 4)))
    return pretrained, finetuned, deltas


@exact_with_arrays
def count_histogram(plan, block, brackets, masked, counts, histograms):
    """`count_block` without signs: adds the undecided values straight to `histograms`, int64 [K, bins].

    Returns a bit for each model with NaNs.
    """
    models = block.stored.shape[0] - 1
    room = np.empty((2 * models + 2) * CHUNK, np.float32)
    lows, highs, shifts = brackets
    not_finite = 0
    for first in range(0, block.size, CHUNK):
        pretrained, finetuned, deltas = _load_chunk(plan, block, first, room, masked)
        values = deltas if plan.reads_pretrained and (masked or plan.masks_deltas) else finetuned
        for i in range(models):
            low, high, shift = lows[i], highs[i], shifts[i]
            patterns, histogram = values[i].view(np.int32), histograms[i]
            below, up_to, largest = np.int32(0), np.int32(0), np.int32(0)
            for j in range(patterns.size):
                pattern = patterns[j] & np.int32(0x7FFFFFFF)
                below += np.int32(pattern < low)
                up_to += np.int32(pattern <= high)
                largest = max(largest, pattern)
            counts[i, 0] += below
            counts[i, 1] += up_to
            if largest > _INFINITY:
                not_finite |= 1 if plan.reads_pretrained and not all_finite(pretrained) else 2 << i
            for j in range(patterns.size):
                pattern = patterns[j] & np.int32(0x7FFFFFFF)
                if low <= pattern < high:
                    histogram[(pattern - low) >> shift] += 1
    return not_finite


@exact_with_arrays
def place_of_equal(plan, block, masked, model, threshold, number):
    """The position in a block of the number-th, counted from 1, of a model's magnitudes that equals a threshold; −1 if
    there are fewer. Which magnitudes: as for `count_block`."""
    models = block.stored.shape[0] - 1
    room = np.empty((2 * models + 2) * CHUNK, np.float32)
    for first in range(0, block.size, CHUNK):
        _, finetuned, deltas = _load_chunk(plan, block, first, room, masked)
        values = deltas[model] if plan.reads_pretrained and (masked or plan.masks_deltas) else finetuned[model]
        for j in range(values.size):
            if abs(values[j]) == threshold:
                number -= 1
                if number == 0:
                    return first + j
    return -1


@exact_with_arrays
def note_candidates(plan, block, models, brackets, masked, counts, candidates):
    """Compare a block's magnitudes with brackets, several for one model if need be: bracket s is for model `models[s]`.

    Fills `counts`, int64 [S, 3], with how many are below each bracket, inside it, and up to its end; and `candidates`,
    int32 [S, size or more], with the bins of those inside. Returns a bit for each model with NaNs.
    """
    room = np.empty((2 * block.stored.shape[0]) * CHUNK, np.float32)
    undecided = np.empty(_GROUP, np.uint32)
    lows, highs, shifts = brackets
    not_finite = 0
    counts[:] = 0
    for first in range(0, block.size, CHUNK):
        pretrained, finetuned, deltas = _load_chunk(plan, block, first, room, masked)
        values = deltas if plan.reads_pretrained and (masked or plan.masks_deltas) else finetuned
        for s in range(models.size):
            low, high, shift = lows[s], highs[s], shifts[s]
            patterns = values[models[s]].view(np.int32)
            below, up_to, largest = np.int32(0), np.int32(0), np.int32(0)
            for j in range(patterns.size):
                pattern = patterns[j] & np.int32(0x7FFFFFFF)
                below += np.int32(pattern < low)
                up_to += np.int32(pattern <= high)
                largest = max(largest, pattern)
            counts[s, 0] += below
            counts[s, 2] += up_to
            if largest > _INFINITY:
                not_finite |= 1 if plan.reads_pretrained and not all_finite(pretrained) else 2 << models[s]
            counts[s, 1] = _note_inside(patterns, low, high, shift, candidates[s], counts[s, 1], undecided)
    return not_finite


@exact
def _note_inside(patterns, low, high, shift, noted, found, undecided):
    """Append the bins of magnitudes inside a bracket to the `found` entries of `noted`. Returns how many it has now."""
    found, width = np.uint64(found), np.uint32(high - low)
    undecided[:] = np.uint32(0)
    whole = patterns.size // _GROUP * _GROUP
    for first in range(0, whole, _GROUP):  # lane l of `undecided` is for positions l, l + 64, l + 128 …
        for lane in range(_GROUP):
            pattern = patterns[first + lane] & np.int32(0x7FFFFFFF)
            undecided[lane] |= np.uint32(np.uint32(pattern - low) < width)
    for lane in range(_GROUP):
        if undecided[lane]:
            for j in range(lane, whole, _GROUP):
                pattern = patterns[j] & np.int32(0x7FFFFFFF)
                noted[found] = (pattern - low) >> shift
                found += np.uint64(np.uint32(pattern - low) < width)
    for j in range(whole, patterns.size):
        pattern = patterns[j] & np.int32(0x7FFFFFFF)
        noted[found] = (pattern - low) >> shift
        found += np.uint64(np.uint32(pattern - low) < width)
    return found


@exact
def count_undecided(undecided, found, histograms, signs_kept, signs_trimmed):
    """Add the first `found` undecided values to counters of shape [models, bins] (int64)."""
    for k in range(found):
        i, bin = undecided.models[k], undecided.bins[k]
        histograms[i, bin] += 1
        signs_kept[i, bin] += undecided.signs_kept[k]
        signs_trimmed[i, bin] += undecided.signs_trimmed[k]
