"""How far a figure may lie from the truth by chance."""

import math
from collections.abc import Sequence

import numpy as np

_Z_OF_95_PERCENT = 1.959963984540054
_DRAWS, _DRAWS_AT_ONCE = 10_000, 500


def wilson_interval(successes: float, trials: int) -> tuple[float, float]:
    """The 95% interval of a proportion (Wilson 1927): inside [0, 1], and not empty at either end.

    `successes` need not be whole: of trials worth something between 0 and 1 the interval is too wide, never too narrow.
    """
    z2 = _Z_OF_95_PERCENT**2
    share = successes / trials
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z_OF_95_PERCENT * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    # At the ends of [0, 1] rounding would leave the share itself outside.
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def mean_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95% interval of a mean by the percentile bootstrap (Efron 1979): of the means of 10,000 samples drawn with
    replacement. The same values and seed give the same interval."""
    numbers = np.asarray(values, dtype=float)
    generator = np.random.default_rng(seed)
    means = [
        generator.choice(numbers, (_DRAWS_AT_ONCE, numbers.size)).mean(axis=1) for _ in range(_DRAWS // _DRAWS_AT_ONCE)
    ]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def paired_difference_interval(first: Sequence[bool], second: Sequence[bool], seed: int = 0) -> tuple[float, float]:
    """The 95% interval of share(first) - share(second) for answers to the same examples, in the same order.

    By the percentile bootstrap over examples: an example is drawn with both its answers, so that what makes it hard for
    both does not widen the interval. Raises ValueError where the two differ in length or are empty.
    """
    if len(first) != len(second) or not len(first):
        raise ValueError(f"{len(first)} and {len(second)} answers cannot be paired")
    return mean_interval(np.asarray(first, dtype=float) - np.asarray(second, dtype=float), seed)


def drop_rate_interval(before: Sequence[bool], after: Sequence[bool], seed: int = 0) -> tuple[float, float]:
    """The 95% interval of (share(before) - share(after)) / share(before) for answers to the same examples, by the
    paired bootstrap. Samples in which nothing before is right, where the rate is undefined, are left out.

    Raises ValueError where the two differ in length or nothing before is right.
    """
    if len(before) != len(after) or not any(before):
        raise ValueError(f"{len(before)} and {len(after)} answers have no drop rate")
    pairs = np.stack([np.asarray(before, dtype=float), np.asarray(after, dtype=float)])
    generator = np.random.default_rng(seed)
    rates = []
    for _ in range(_DRAWS // _DRAWS_AT_ONCE):
        drawn = pairs[:, generator.integers(pairs.shape[1], size=(_DRAWS_AT_ONCE, pairs.shape[1]))].mean(axis=2)
        defined = drawn[:, drawn[0] > 0]
        rates.append(1 - defined[1] / defined[0])
    low, high = np.quantile(np.concatenate(rates), [0.025, 0.975])
    return float(low), float(high)
