"""Order statistics of one array in memory, by counting bit patterns: faster than sorting, and without copies."""

import numpy as np

from model_merging_methods.kernels.block_kernels import exact, exact_with_arrays

_HALF = 1 << 16


@exact_with_arrays
def kth_smallest(magnitudes, rank):
    """The rank-th smallest of non-negative float32 numbers, counted from 1."""
    patterns = magnitudes.view(np.int32)
    high, left = _bin_of(patterns, np.int32(-1), rank)
    low, _ = _bin_of(patterns, high, left)
    pattern = np.empty(1, np.int32)
    pattern[0] = high << np.int32(16) | low
    return pattern.view(np.float32)[0]


@exact_with_arrays
def _bin_of(patterns, wanted, rank):
    """The half of the patterns that holds the rank-th, and its rank among those: high halves, or, for a `wanted` high
    half, the low halves of those patterns."""
    counts = np.zeros(_HALF, np.int64)
    if wanted < 0:
        for j in range(patterns.size):
            counts[patterns[j] >> np.int32(16)] += 1
    else:
        for j in range(patterns.size):
            if patterns[j] >> np.int32(16) == wanted:
                counts[patterns[j] & np.int32(0xFFFF)] += 1
    below = 0
    for bin in range(_HALF):
        if below + counts[bin] >= rank:
            return np.int32(bin), rank - below
        below += counts[bin]
    return np.int32(0), 0


@exact
def mark_largest(magnitudes, threshold, count, selected):
    """Set `selected` where a value is above the threshold, or equal to it and among the first that make `count`."""
    equal = count
    for j in range(magnitudes.size):
        equal -= np.int64(magnitudes[j] > threshold)
    for j in range(magnitudes.size):
        is_equal = magnitudes[j] == threshold
        selected[j] = magnitudes[j] > threshold or (is_equal and equal > 0)
        equal -= np.int64(is_equal)


@exact
def count_runs(ordered, distinct, counts):
    """The different numbers of an ordered array and how often each occurs. Returns how many there are."""
    runs = 0
    for j in range(ordered.size):
        if j > 0 and ordered[j] == ordered[j - 1]:
            counts[runs - 1] += 1
        else:
            distinct[runs] = ordered[j]
            counts[runs] = 1
            runs += 1
    return runs


@exact_with_arrays
def kth_of_counted(numbers, counts, rank):
    """The rank-th smallest, from 1, of non-negative integers below 2³¹ that occur `counts` times each."""
    low, left = np.int64(0), np.int64(rank)
    for shift in (20, 10, 0):
        of_bins = np.zeros(1 << 11, np.int64)
        for j in range(numbers.size):
            bin = (numbers[j] - low) >> shift
            if 0 <= bin < of_bins.size:
                of_bins[bin] += counts[j]
        bin = 0
        while left > of_bins[bin]:
            left -= of_bins[bin]
            bin += 1
        low += np.int64(bin) << shift
    return low


@exact_with_arrays
def kth_of_products(values, factors, ranks):
    """The ranks-th smallest numbers, from 0, of |values| · factors: of float32 [rows, n] and float64 [rows]."""
    rows, columns = values.shape
    products = np.empty(columns, np.float64)
    patterns = products.view(np.int64)
    prefixes, left = np.zeros(ranks.size, np.int64), ranks.copy()
    for shift in (48, 32, 16, 0):
        counts = np.zeros((ranks.size, _HALF), np.int64)
        for row in range(rows):
            for j in range(columns):
                products[j] = np.float64(abs(values[row, j])) * factors[row]
            for k in range(1 if shift == 48 else ranks.size):
                for j in range(columns):
                    if patterns[j] >> (shift + 16 if shift < 48 else 63) == prefixes[k]:
                        counts[k, patterns[j] >> shift & 0xFFFF] += 1
        for k in range(ranks.size):
            of_bins, bin = counts[0 if shift == 48 else k], 0
            while left[k] >= of_bins[bin]:
                left[k] -= of_bins[bin]
                bin += 1
            prefixes[k] = prefixes[k] << 16 | bin
    return prefixes.view(np.float64)
