"""95% confidence intervals of scores, differences and drop rates."""

import math
from collections.abc import Sequence

import numpy as np

_Z_OF_95_PERCENT = 1.959963984540054
_SAMPLES, _SAMPLES_AT_ONCE = 10_000, 500
_NO_WIDTH = 1e-9  # an interval narrower than this has width 0, up to rounding

Scores = Sequence[float]  # of each example
Draws = Sequence[Sequence[float]]  # one or more draws of the same thing: the score of each example, in the same order


def wilson_interval(successes: float, trials: int) -> tuple[float, float]:
    """The 95% interval of a proportion (Wilson 1927): inside [0, 1], with a width even at 0 and 1.

    `successes` may be a fraction: for trials with scores between 0 and 1 the interval is too wide, never too narrow.
    """
    z2 = _Z_OF_95_PERCENT**2
    if trials == 0:
        return 0.0, 1.0  # nothing is known
    share = successes / trials
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z_OF_95_PERCENT * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    # Rounding could leave the share itself outside at 0 and 1.
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def mean_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95% interval of a mean by the percentile bootstrap (Efron 1979), from 10,000 samples with replacement.

    If all values (from 0 to 1) are equal, every sample has the same mean, and the interval is Wilson's. The same values
    and seed give the same interval.
    """
    if len(set(values)) < 2:
        return wilson_interval(sum(values), len(values))
    rows = np.asarray(values, dtype=float)[None]
    return _percentiles(_means_of_samples(rows, np.random.default_rng(seed)))


def paired_difference_interval(tasks: Sequence[tuple[Draws, Draws]], seed: int = 0) -> tuple[float, float]:
    """The 95% interval of mean(first) − mean(second), averaged over tasks, by the paired bootstrap on two levels.

    `tasks`: for each task the draws of the first and of the second, which answered the same examples in the same order.
    Each sample draws draws with replacement on both sides, then examples with all their answers, so that an example's
    difficulty for both sides does not widen the interval. With a single draw on both sides this is the paired bootstrap
    over examples (Efron and Tibshirani 1993, percentiles). Few draws give too narrow an interval: with three, the
    variance over draws is 2/3 of the true one. If all differences (of scores from 0 to 1) are equal, the interval is
    Wilson's of (1 + difference) / 2.

    Raises ValueError if a task's draws differ in length or are empty.
    """
    generator = np.random.default_rng(seed)
    differences = np.zeros(_SAMPLES)
    for first, second in tasks:
        if not first or not second or len({len(draw) for draw in (*first, *second)}) != 1 or not len(first[0]):
            raise ValueError(f"{_lengths(first)} and {_lengths(second)} answers cannot be paired")
        # Every draw of the first minus every draw of the second.
        rows = np.asarray(first, dtype=float)[:, None] - np.asarray(second, dtype=float)
        means = _means_of_samples(rows.reshape(-1, rows.shape[-1]), generator).reshape(_SAMPLES, *rows.shape[:2])
        weights = [_weights_of_draws(len(draws), generator) for draws in (first, second)]
        differences += np.einsum("sfe,sf,se->s", means, *weights) / len(tasks)
    low, high = _percentiles(differences)
    if high - low > _NO_WIDTH:
        return low, high
    examples = sum(len(first[0]) for first, _ in tasks)
    return tuple(2 * end - 1 for end in wilson_interval(examples * (1 + low) / 2, examples))


def mean_ratio_interval(groups: Sequence[Sequence[tuple[Scores, Scores]]], seed: int = 0) -> tuple[float, float]:
    """The 95% interval of the mean over groups of Σ mean(first) / Σ mean(second), by the paired bootstrap.

    `groups`: for each group its tasks, and for each task the scores of the first and of the second, which answered the
    same examples in the same order; a single example keeps its scores. Samples in which a group's second sum is 0 are
    left out. If the ratio is the same in all samples, the interval has no width.
    Raises ValueError if scores differ in length or are empty.
    """
    generator = np.random.default_rng(seed)
    ratios = np.zeros(_SAMPLES)
    for tasks in groups:
        sums = np.zeros((_SAMPLES, 2))
        for first, second in tasks:
            if len(first) != len(second) or not len(first):
                raise ValueError(f"{len(first)} and {len(second)} answers cannot be paired")
            sums += _means_of_samples(np.asarray([first, second], dtype=float), generator)
        ratios += np.divide(sums[:, 0], sums[:, 1], out=np.full(_SAMPLES, np.nan), where=sums[:, 1] > 0)
    return _percentiles(ratios[~np.isnan(ratios)] / len(groups))


def mean_ratio_of_draws_interval(tasks: Sequence[tuple[Draws, Draws]], seed: int = 0) -> tuple[float, float]:
    """The 95% interval of mean(first) / mean(second), averaged over tasks, by the bootstrap of
    `paired_difference_interval`. Samples whose second mean is 0 are left out. If the ratio, at most 1, is the same in
    all samples, the interval is Wilson's of the kept share of the second's right answers."""
    generator = np.random.default_rng(seed)
    ratios = np.zeros(_SAMPLES)
    for first, second in tasks:
        means = _means_of_samples(np.asarray([*first, *second], dtype=float), generator)
        of_first, of_second = (
            np.einsum("sd,sd->s", of_draws, _weights_of_draws(of_draws.shape[1], generator))
            for of_draws in (means[:, : len(first)], means[:, len(first) :])
        )
        ratios += np.divide(of_first, of_second, out=np.full(_SAMPLES, np.nan), where=of_second > 0) / len(tasks)
    low, high = _percentiles(ratios[np.isfinite(ratios)])
    if high - low > _NO_WIDTH or low > 1 + _NO_WIDTH:
        return low, high
    right = sum(max(map(sum, second)) for _, second in tasks)
    return wilson_interval(min(low, 1.0) * right, right)


def drop_rate_interval(before: Draws, after: Draws, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of (share(before) − share(after)) / share(before), averaged over draws, by the paired bootstrap
    on two levels as for a difference. `before` and `after` have each draw's answers to the same examples.

    A sample leaves out draws without a right answer before, whose rate is undefined. If the rate is the same in all
    samples, the interval is Wilson's of the lost share of a draw's right answers.
    Raises ValueError if the two differ in shape, or a draw has no right answer before.
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

    Equal columns are counted together, because right and wrong answers give few different columns.
    """
    columns, counts = np.unique(rows, axis=1, return_counts=True)
    number = rows.shape[1]
    sums = [
        generator.multinomial(number, counts / number, size=_SAMPLES_AT_ONCE) @ columns.T
        for _ in range(_SAMPLES // _SAMPLES_AT_ONCE)
    ]
    return np.concatenate(sums) / number


def _weights_of_draws(number: int, generator: np.random.Generator) -> np.ndarray:
    """The weight of each draw in samples of the draws with replacement: samples × draws, each row with sum 1."""
    return generator.multinomial(number, [1 / number] * number, size=_SAMPLES) / number


def _lengths(draws: Draws) -> str:
    return ", ".join(str(len(draw)) for draw in draws) or "no"


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
