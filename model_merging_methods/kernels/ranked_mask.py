"""DELLA's mask, row by row: ranks of magnitudes by counting their bit patterns, and the random words of positions."""

import numpy as np

from model_merging_methods.kernels.compiling import exact_with_arrays
from model_merging_methods.kernels.mask_kernels import random_word

_BINS = 256  # a byte of the patterns at a time
_BYTES = 4


@exact_with_arrays
def mask_by_rank(values, key, start, lowest, step, divides):
    """Put 0 in place of the values that `masks.della.draw` drops: float32 [rows, length], contiguous.

    The value of rank r in its row is kept with the probability `lowest` + r · `step`; equal magnitudes rank in order.
    `start` is the position of the first value in its tensor, and `key` that of the tensor's mask (uint64). `divides`:
    divide each survivor by its probability. Returns Σ|x| of each row before and after, added up in float64 in the
    values' order: [rows, 2].
    """
    rows, length = values.shape
    order, spare = np.empty(length, np.int32), np.empty(length, np.int32)
    patterns = np.empty(length, np.int32)
    places = np.empty((_BYTES, _BINS), np.int64)
    probabilities = np.empty(length, np.float64)
    sums = np.zeros((rows, 2))
    for row in range(rows):
        in_row = values[row]
        order, spare = _sort(in_row.view(np.int32), patterns, order, spare, places)
        for rank in range(length):
            probabilities[order[rank]] = lowest + np.float64(rank) * step
        first = np.uint64(start + row * length)
        before = after = 0.0
        for j in range(length):
            before += abs(np.float64(in_row[j]))
            word = random_word(key, first + np.uint64(j)) >> np.uint64(11)
            if np.float64(word) / 2.0**53 >= probabilities[j]:
                in_row[j] *= np.float32(0.0)  # NaN stays
            elif divides:
                in_row[j] /= np.float32(probabilities[j])
            after += abs(np.float64(in_row[j]))
        sums[row, 0], sums[row, 1] = before, after
    return sums


@exact_with_arrays
def _sort(stored, patterns, order, spare, places):
    """The positions by magnitude, equal ones in order: `order` or `spare`, and the other one."""
    places[:] = 0
    for j in range(stored.size):
        pattern = stored[j] & np.int32(0x7FFFFFFF)
        patterns[j] = pattern
        order[j] = j
        for byte in range(_BYTES):
            places[byte, pattern >> np.int32(8 * byte) & np.int32(0xFF)] += 1
    for byte in range(_BYTES):
        shift, of_byte = np.int32(8 * byte), places[byte]
        if of_byte[patterns[0] >> shift & np.int32(0xFF)] == patterns.size:
            continue  # all have the same byte
        first = 0
        for bin in range(_BINS):
            first, of_byte[bin] = first + of_byte[bin], first
        for k in range(order.size):
            bin = patterns[order[k]] >> shift & np.int32(0xFF)
            spare[of_byte[bin]] = order[k]
            of_byte[bin] += 1
        order, spare = spare, order
    return order, spare
