"""How far a figure may lie from the truth by chance."""

import math
from collections.abc import Sequence

import numpy as np

_Z_OF_95_PERCENT = 1.959963984540054
_SAMPLES, _SAMPLES_AT_ONCE = 10_000, 500
_NO_WIDTH = 1e-9  # of an interval that only rounding makes wider than nothing

Draws = Sequence[Sequence[float]]  # of one thing, one draw or several: what each example was worth, in one order


def wilson_interval(successes: float, trials: int) -> tuple[float, float]:
    """The 95% interval of a proportion (Wilson 1927): inside [0, 1], and not empty at either end.

    `successes` need not be whole: of trials worth something between 0 and 1 the interval is too wide, never too narrow.
    """
    z2 = _Z_OF_95_PERCENT**2
    if trials == 0:
        return 0.0, 1.0  # nothing is known
    share = successes / trials
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z_OF_95_PERCENT * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    # At the ends of [0, 1] rounding would leave the share itself outside.
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def mean_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95% interval of a mean by the percentile bootstrap (Efron 1979): of the means of 10,000 samples drawn with
    replacement. Of values from 0 to 1 that are all alike, of which every sample has the same mean, it is Wilson's. The
    same values and seed give the same interval."""
    if len(set(values)) < 2:
        return wilson_interval(sum(values), len(values))
    rows = np.asarray(values, dtype=float)[None]
    return _percentiles(_means_of_samples(rows, np.random.default_rng(seed)))


def paired_difference_interval(tasks: Sequence[tuple[Draws, Draws]], seed: int = 0) -> tuple[float, float]:
    """The 95% interval of mean(first) - mean(second), meant over tasks, by the paired bootstrap in two levels.

    `tasks`: for each the first's draws and the second's, which answered the same examples in the same order. For a
    sample, draws are drawn with replacement on either side, then examples: an example with all its answers, so that
    what makes it hard for both sides does not widen the interval. Of a single draw on either side it is the paired
    bootstrap over examples alone (Efron and Tibshirani 1993, percentiles). Few draws say little of the next one: of
    three, a sample's variance over draws is 2/3 of the true one, and the interval too narrow. Where all differences are
    alike, of answers from 0 to 1, it is Wilson's of (1 + difference) / 2.

    Raises ValueError where a task's draws differ in length or are empty.
    """
    generator = np.random.default_rng(seed)
    differences = np.zeros(_SAMPLES)
    for first, second in tasks:
        if not first or not second or len({len(draw) for draw in (*first, *second)}) != 1 or not len(first[0]):
            raise ValueError(f"{_lengths(first)} and {_lengths(second)} answers cannot be paired")
        # Every draw of the first less every draw of the second.
        rows = np.asarray(first, dtype=float)[:, None] - np.asarray(second, dtype=float)
        means = _means_of_samples(rows.reshape(-1, rows.shape[-1]), generator).reshape(_SAMPLES, *rows.shape[:2])
        weights = [_weights_of_draws(len(draws), generator) for draws in (first, second)]
        differences += np.einsum("sfe,sf,se->s", means, *weights) / len(tasks)
    low, high = _percentiles(differences)
    if high - low > _NO_WIDTH:
        return low, high
    examples = sum(len(first[0]) for first, _ in tasks)
    return tuple(2 * end - 1 for end in wilson_interval(examples * (1 + low) / 2, examples))


def drop_rate_interval(before: Draws, after: Draws, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of (share(before) - share(after)) / share(before), meant over draws, by the paired bootstrap in
    two levels as for a difference: `before` and `after` hold each draw's answers to the same examples.

    Draws of a sample in which nothing before is right, where the rate is undefined, are left out of it. Where the rate
    is the same in all samples, it is Wilson's interval of the share that is lost of a draw's right answers.
    Raises ValueError where the two differ in shape, or nothing before is right in a draw.
    """
    if not before or len(before) != len(after) or len({len(draw) for draw in (*before, *after)}) != 1:
        raise ValueError(f"{_lengths(before)} and {_lengths(after)} answers have no drop rate")
    if not all(any(draw) for draw in before):
        raise ValueError("nothing was right before: there is no drop rate")
    generator = np.random.default_rng(seed)
    means = _means_of_samples(np.asarray([*before, *after], dtype=float), generator)
    shares_before, shares_after = means[:, : len(before)], means[:, len(before) :]
    defined = shares_before > 0
    rates = 1 - np.divide(shares_after, shares_before, out=np.ones_like(shares_after), where=defined)
    weights = _weights_of_draws(len(before), generator) * defined
    total = weights.sum(axis=1)
    low, high = _percentiles((weights * rates).sum(axis=1)[total > 0] / total[total > 0])
    if high - low > _NO_WIDTH or low < 0:
        return low, high
    right = max(sum(map(bool, draw)) for draw in before)
    return wilson_interval(low * right, right)


def _means_of_samples(rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The means of the rows over samples of the columns with replacement, the same for all rows: samples × rows.

    Columns that are alike are counted together: of answers that are right or wrong there are few kinds.
    """
    columns, counts = np.unique(rows, axis=1, return_counts=True)
    number = rows.shape[1]
    sums = [
        generator.multinomial(number, counts / number, size=_SAMPLES_AT_ONCE) @ columns.T
        for _ in range(_SAMPLES // _SAMPLES_AT_ONCE)
    ]
    return np.concatenate(sums) / number


def _weights_of_draws(number: int, generator: np.random.Generator) -> np.ndarray:
    """How much each draw counts in samples of the draws with replacement: samples × draws, each line's sum 1."""
    return generator.multinomial(number, [1 / number] * number, size=_SAMPLES) / number


def _lengths(draws: Draws) -> str:
    return ", ".join(str(len(draw)) for draw in draws) or "no"


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
