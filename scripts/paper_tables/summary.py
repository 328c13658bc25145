"""Several draws of one merge in one figure: mean, spread, best; and what M3 changes, on the same examples."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from inference_llms.answer_health import total
from scripts.paper_tables.score import OK, Score, share_interval
from utils.intervals import drop_rate_interval, paired_difference_interval


@dataclass(frozen=True)
class Summary:
    """The scores of one line.

    `value`: the mean over the draws that have one. `low` and `high`: its 95% interval; of an accuracy over examples, as
    if these draws answered each alike, which is the widest that it can be; of a drop rate over draws and examples; None
    where the draws were asked different numbers of examples. `spread`: the standard deviation over the draws, `best`
    the best of them; None for a single score. `examples` of each draw.
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
    def health_warning(self) -> str | None:
        """The faults of the draws' answers together, in a line; None where few have any."""
        healths = [score.health for score in self.scores if score.health is not None]
        return total(healths).warning() if healths else None

    @property
    def draws(self) -> int:
        return len(self.scores) - len(self.lacking)

    @property
    def draws_asked(self) -> int:
        """Draws that have a value or lack one; a draw may have another result beside its value, that cannot be read."""
        return len({score.draw for score in self.scores})


@dataclass(frozen=True)
class Gain:
    """What M3 adds, in points, with the 95% interval of the paired bootstrap over draws and examples."""

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
    low, high = _interval_of_mean(there, value, examples)
    best = min(values) if there[0].metric == "PDR" else max(values)
    return Summary(tuple(scores), value, low, high, stdev(values), best, examples)


def _interval_of_mean(there: Sequence[Score], value: float, examples: int | None) -> tuple[float | None, float | None]:
    if examples is None:
        return None, None
    if there[0].metric != "PDR":
        return share_interval(value / 100, examples)
    before, after = zip(*(score.right for score in there), strict=True)
    low, high = drop_rate_interval(before, after)
    return 100 * low, 100 * high


def gain(without: Summary, with_mixup: Summary) -> Gain | None:
    """What M3's draws add on average; None unless both were asked the same examples and tell of each."""
    scores = [[score for score in summary.scores if score.status == OK] for summary in (with_mixup, without)]
    if not all(scores) or any(score.values is None for score in (*scores[0], *scores[1])):
        return None
    tables = [[dict(score.values) for score in of_side] for of_side in scores]
    examples = list(tables[0][0])
    if any(table.keys() != tables[0][0].keys() for of_side in tables for table in of_side):
        return None
    first, second = ([[table[example] for example in examples] for table in of_side] for of_side in tables)
    low, high = paired_difference_interval([(first, second)])
    return Gain(100 * (mean(map(mean, first)) - mean(map(mean, second))), 100 * low, 100 * high)


def by_line(scores: Iterable[Score]) -> dict[tuple, list[Score]]:
    """The scores by what they are of, draws together, in their order."""
    lines: dict[tuple, list[Score]] = {}
    for score in scores:
        lines.setdefault(score.line, []).append(score)
    return lines
