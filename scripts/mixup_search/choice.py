"""The rule by which a search chooses: the largest mean gain over the fine-tunes, on the validation part.

A candidate's gain in a task is its score less that of the fine-tune made for the task, over the same examples. Draws
are compared where they have answered the same examples: the largest number of them that a draw has reached in every
task.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from scripts.mixup_search.candidate import Part, Result
from utils.intervals import paired_difference_interval

RULE = (
    "The chosen ratio is that of the draw with the largest mean gain on the validation part: the mean over the tasks "
    "of its score less the score of the fine-tune made for the task, over the same examples, among the draws that "
    "reached the largest number of them; of equal ones the first drawn. The test part plays no part in the choice."
)

Scores = dict[str, dict[str, Result]]  # by candidate and task


def latest_scores(results: Sequence[Result], part: Part) -> Scores:
    """Each candidate's result in each task, over the largest number of examples of the part that it has reached."""
    latest: Scores = {}
    for result in results:
        of_candidate = latest.setdefault(result.candidate, {})
        if result.part == part:
            known = of_candidate.get(result.task)
            if known is None or known.examples < result.examples:
                of_candidate[result.task] = result
    return {name: scores for name, scores in latest.items() if scores}


def comparable_scores(results: Sequence[Result], part: Part, draws: Sequence[str], sizes: Mapping[str, int]) -> Scores:
    """The results over the largest number of examples that one of the `draws` has reached in every task, by candidate;
    none while no draw has a result in every task.

    `sizes`: how many examples each task has in this part. A draw that has gone further in some tasks alone counts by
    what it has in all.
    """
    numbers: dict[str, dict[str, dict[int, Result]]] = {}
    for result in results:
        if result.part == part:
            numbers.setdefault(result.candidate, {}).setdefault(result.task, {})[result.examples] = result
    complete = [name for name in draws if all(task in numbers.get(name, {}) for task in sizes)]
    levels = {tuple(max(numbers[name][task]) for task in sizes) for name in complete}
    if not levels:
        return {}

    def at(level: tuple[int, ...], name: str) -> dict[str, Result]:
        reached = numbers.get(name, {})
        pairs = zip(sizes, level, strict=True)
        return {task: reached[task][examples] for task, examples in pairs if examples in reached.get(task, {})}

    def worth(level: tuple[int, ...]) -> tuple[float, int, tuple[int, ...]]:
        unfinished = [examples for examples, size in zip(level, sizes.values(), strict=True) if examples < size]
        return min(unfinished, default=math.inf), sum(len(at(level, name)) == len(level) for name in complete), level

    level = max(levels, key=worth)
    found = {name: at(level, name) for name in numbers}
    return {name: scores for name, scores in found.items() if scores}


def gains(scores: Scores, finetuned: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """By candidate that has a score in every task, its gain in each; none without the scores of the fine-tunes.

    `finetuned`: for each task the name of the candidate that is the fine-tune made for it.
    """
    if any(task not in scores.get(name, {}) for task, name in finetuned.items()):
        return {}
    return {
        name: {task: of_task[task].score - scores[finetuned[task]][task].score for task in finetuned}
        for name, of_task in scores.items()
        if of_task.keys() >= finetuned.keys()
    }


def mean_gain(gains_by_task: Mapping[str, float]) -> float:
    """The mean over the tasks, rounded so far that gains which are equal but for their last bits are equal."""
    return round(sum(gains_by_task.values()) / len(gains_by_task), 12)


def best(gains_by_candidate: Mapping[str, Mapping[str, float]], draws: Sequence[str]) -> str | None:
    """The draw with the largest mean gain, the first of equal ones; None where no draw has one."""
    found = [name for name in draws if name in gains_by_candidate]
    return max(found, key=lambda name: mean_gain(gains_by_candidate[name]), default=None)


def pareto_front(scores: Mapping[str, Sequence[float]]) -> list[str]:
    """The candidates that no other one equals or beats in every task and beats in one."""
    return [
        name
        for name, own in scores.items()
        if not any(
            tuple(other) != tuple(own) and all(a >= b for a, b in zip(other, own, strict=True))
            for other in scores.values()
        )
    ]


@dataclass(frozen=True)
class Difference:
    """By how much the first of two candidates scores above the second, with its 95% interval, over so many examples
    that both have answered."""

    mean: float
    low: float
    high: float
    examples: int


def paired_difference(
    pairs: Sequence[tuple[Mapping[int | str, bool], Mapping[int | str, bool]]], seed: int
) -> Difference | None:
    """The difference of two candidates' scores, meant over tasks; None where a task has no example that both answered.

    `pairs` holds for each task whether each example was answered rightly, by the first candidate and by the second. The
    interval is the paired bootstrap's: examples are drawn again, with both candidates' answers, in each task by itself.
    """
    both = [[example for example in first if example in second] for first, second in pairs]
    if not all(both):
        return None
    answers = [
        tuple([[answered[example] for example in examples]] for answered in pair)
        for pair, examples in zip(pairs, both, strict=True)
    ]
    # Exact, for the sign of the mean is told.
    means = [Fraction(sum(first) - sum(second), len(first)) for ((first,), (second,)) in answers]
    low, high = paired_difference_interval(answers, seed)
    return Difference(float(sum(means) / len(means)), low, high, sum(map(len, both)))
