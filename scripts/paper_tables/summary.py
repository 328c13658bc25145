"""Several draws of one merge in one figure: mean, spread, best; and what M3 changes, on the same examples."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from scripts.paper_tables.score import OK, Score, share_interval
from utils.intervals import mean_interval


@dataclass(frozen=True)
class Summary:
    """The scores of one line.

    `value`: the mean over the draws that have one. `low` and `high`: its 95% interval, as if these draws answered each
    example alike, which is the widest that it can be; None for drop rates of several draws. `spread`: the standard
    deviation over the draws, `best` the best of them; None for a single score. `examples` of each draw.
    """

    scores: tuple[Score, ...]
    value: float | None
    low: float | None
    high: float | None
    spread: float | None
    best: float | None
    examples: int | None

    @property
    def lacking(self) -> tuple[Score, ...]:
        return tuple(score for score in self.scores if score.status != OK)

    @property
    def draws(self) -> int:
        return len(self.scores) - len(self.lacking)

    @property
    def draws_asked(self) -> int:
        """Draws that have a value or lack one; a draw may have another result beside its value, that cannot be read."""
        return len({score.draw for score in self.scores})


@dataclass(frozen=True)
class Gain:
    """What M3 adds, in points, with the 95% interval of the paired bootstrap over examples."""

    value: float
    low: float
    high: float


def summarise(scores: Sequence[Score]) -> Summary:
    """The summary of the draws of one line."""
    there = [score for score in scores if score.status == OK]
    if not there:
        return Summary(tuple(scores), None, None, None, None, None, None)
    values = [score.value for score in there]
    examples = there[0].examples if len({score.examples for score in there}) == 1 else None
    if len(there) == 1:
        low, high = there[0].low, there[0].high
        return Summary(tuple(scores), values[0], low, high, None, None, examples)
    value = mean(values)
    low, high = None, None
    if examples is not None and there[0].metric != "PDR":
        low, high = share_interval(value / 100, examples)
    best = min(values) if there[0].metric == "PDR" else max(values)
    return Summary(tuple(scores), value, low, high, stdev(values), best, examples)


def mean_by_example(scores: Iterable[Score]) -> dict[int | str, float] | None:
    """The mean over draws of what each example was worth; None where a draw does not tell, or has other examples."""
    tables = [dict(score.values) if score.values is not None else None for score in scores]
    if None in tables or len({frozenset(table) for table in tables}) != 1:
        return None
    return {example: mean(table[example] for table in tables) for example in tables[0]}


def gain(without: Summary, with_mixup: Summary) -> Gain | None:
    """What M3's draws add on average; None unless both were asked the same examples and tell of each."""
    pairs = [
        mean_by_example(score for score in summary.scores if score.status == OK) if summary.draws else None
        for summary in (without, with_mixup)
    ]
    if None in pairs or pairs[0].keys() != pairs[1].keys():
        return None
    differences = [pairs[1][example] - pairs[0][example] for example in pairs[0]]
    low, high = mean_interval(differences)
    return Gain(100 * mean(differences), 100 * low, 100 * high)


def by_line(scores: Iterable[Score]) -> dict[tuple, list[Score]]:
    """The scores by what they are of, draws together, in their order."""
    lines: dict[tuple, list[Score]] = {}
    for score in scores:
        lines.setdefault(score.line, []).append(score)
    return lines
