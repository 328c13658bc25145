"""The compiled masks: `mask_weights`, value for value."""

import numpy as np

from model_merging_methods.kernels.compiling import ONE, ZERO, exact, exact_with_arrays

# SplitMix64.
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)


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
