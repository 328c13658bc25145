"""DELLA's draw, row by row: ranks of magnitudes by counting their bit patterns, and the random words of positions."""

import numpy as np

from model_merging_methods.kernels.block_kernels import exact, random_word

_BINS = 256  # a byte of the patterns at a time


@exact
def draw_by_rank(values, kept, probabilities, key, start, lowest, step):
    """Fill `kept` (bool) and `probabilities` (float32) as `masks.della.draw` does; all are [rows, length], contiguous.

    The value of rank r in its row is kept with the probability `lowest` + r · `step`; equal magnitudes rank in order.
    `start` is the position of the first value in its tensor, and `key` that of the tensor's mask (uint64).
    """
    rows, length = values.shape
    order, spare = np.empty(length, np.int32), np.empty(length, np.int32)
    places = np.empty(_BINS + 1, np.int64)
    for row in range(rows):
        patterns = values[row].view(np.int32)
        for j in range(length):
            order[j] = j
        for shift in (0, 8, 16, 24):
            if _sort_by_byte(patterns, np.int32(shift), order, spare, places):
                order, spare = spare, order
        first = np.uint64(start + row * length)
        for rank in range(length):
            j = order[rank]
            probability = lowest + np.float64(rank) * step
            word = random_word(key, first + np.uint64(j)) >> np.uint64(11)
            kept[row, j] = np.float64(word) / 2.0**53 < probability
            probabilities[row, j] = np.float32(probability)


@exact
def _sort_by_byte(patterns, shift, order, ordered, places):
    """Sort `order` (positions) into `ordered` by one byte of their patterns without sign, keeping the order of equal
    ones. False, without sorting, if all have the same byte."""
    places[:] = 0
    for j in range(patterns.size):
        places[((patterns[j] & np.int32(0x7FFFFFFF)) >> shift & np.int32(0xFF)) + 1] += 1
    if places[((patterns[0] & np.int32(0x7FFFFFFF)) >> shift & np.int32(0xFF)) + 1] == patterns.size:
        return False
    for bin in range(_BINS):
        places[bin + 1] += places[bin]
    for k in range(order.size):
        bin = (patterns[order[k]] & np.int32(0x7FFFFFFF)) >> shift & np.int32(0xFF)
        ordered[places[bin]] = order[k]
        places[bin] += 1
    return True
