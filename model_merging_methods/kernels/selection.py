"""Order statistics of one tensor, faster than by sorting it."""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from model_merging_methods.kernels.compiling import exact, exact_with_arrays

_HALF = 1 << 16
_LEAST_SAMPLE, _LARGEST_SAMPLE = 1 << 12, 1 << 18


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


def kth_of_products(
    products: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]], sample: np.ndarray, n: int, ranks: Sequence[int]
) -> list[float]:
    """The ranks-th smallest, counted from 0, of n numbers |values| · factors, which each call of `products` gives anew,
    strip by strip: float32 [rows, columns] and float64 [rows].

    A sample of them, in order, brackets each wanted one; a pass counts what is below, and collects what is inside.
    Should one be outside of its bracket, there is another pass with wider ones. NaN if products are NaN.
    """
    margin = 2 * int(len(sample) ** 0.5) + 1  # four standard deviations of a rank in the middle
    while True:
        brackets = _brackets(sample, [rank * len(sample) // n for rank in ranks], margin)
        counts, inside = np.zeros((len(ranks), 3), np.int64), []
        for values, factors in products():
            room = np.empty(values.size)
            inside.append(room[: collect_products(values, factors, brackets, counts, room)].copy())
        together = np.concatenate(inside)
        found = [_kth_in(together, rank, *of_rank) for rank, *of_rank in zip(ranks, brackets, counts, strict=True)]
        if None not in found or margin > len(sample):  # these brackets hold every number
            return [math.nan if one is None else one for one in found]
        margin *= 8


def some_products(values: np.ndarray, factors: np.ndarray, n: int) -> np.ndarray:
    """A strip's part of a sample of n products: more than enough values of few, and at most 2¹⁸ of many."""
    step = n // min(max(n >> 5, _LEAST_SAMPLE), _LARGEST_SAMPLE) | 1  # odd: not always the same columns
    places = np.arange(0, values.size, step)
    with np.errstate(invalid="ignore"):  # infinite values of rows that do not differ
        return np.abs(values.reshape(-1)[places]).astype(np.float64) * factors[places // values.shape[1]]


def _brackets(sample: np.ndarray, places: Sequence[int], margin: int) -> np.ndarray:
    """Around each of these places in the sample's order a bracket: [R, 2]. It has no end if the sample is too short."""
    ends = np.array([[place - margin, place + margin] for place in places])
    brackets = sample[np.clip(ends, 0, len(sample) - 1)]
    brackets[ends[:, 0] < 0, 0], brackets[ends[:, 1] >= len(sample), 1] = -1.0, np.inf
    return brackets


def _kth_in(inside: np.ndarray, rank: int, bracket: np.ndarray, counts: np.ndarray) -> float | None:
    """The rank-th smallest number if it is in its bracket. `counts`: how many are below it, at its low and at its high
    end. `inside` has those in between, and those of other brackets."""
    (low, high), (below, at_low, at_high) = bracket.tolist(), counts.tolist()
    if below <= rank < below + at_low:
        return low
    own, rank = inside[(inside > low) & (inside < high)], rank - below - at_low
    if 0 <= rank < len(own):
        return float(np.partition(own, rank)[rank])
    return high if 0 <= rank - len(own) < at_high else None


@exact_with_arrays
def collect_products(values, factors, brackets, counts, room):
    """Count products below, at the low end and at the high end of each bracket: adds to int64 [R, 3]. Puts those inside
    of any at the beginning of `room`, float64 [rows · columns], and returns how many these are."""
    rows, columns = values.shape
    products, is_inside = np.empty(columns), np.empty(columns, np.uint8)
    found = 0
    for row in range(rows):
        factor = factors[row]
        for j in range(columns):
            products[j] = np.float64(abs(values[row, j])) * factor
            is_inside[j] = 0
        for k in range(brackets.shape[0]):
            low, high = brackets[k]
            below, at_low, at_high = np.int64(0), np.int64(0), np.int64(0)
            for j in range(columns):
                below += np.int64(products[j] < low)
                at_low += np.int64(products[j] == low)
                at_high += np.int64(products[j] == high)
                is_inside[j] |= np.uint8((products[j] > low) & (products[j] < high))
            counts[k, 0] += below
            counts[k, 1] += at_low
            counts[k, 2] += at_high
        for j in range(columns):
            room[found] = products[j]
            found += np.int64(is_inside[j])
    return found
