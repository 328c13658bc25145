"""Scores, one row of the CSV each, and summaries of several draws: mean, spread, best, and the gain of M3."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from statistics import mean, stdev
from typing import Any

from inference_llms.answer_health import Health, total
from inference_llms.prompt_format import PAPER
from utils.intervals import drop_rate_interval, mean_interval, paired_difference_interval, wilson_interval

OK, MISSING, UNREADABLE, CONFLICT = "ok", "missing", "unreadable", "two results"
PDR = "PDR"  # the performance drop rate, the metric of attacks
NO_VALUE: dict[str, Any] = {"value": None, "low": None, "high": None, "values": None, "right": None}


@dataclass(frozen=True)
class Score:
    """One result of one merge on one data set, or the reason why there is none.

    `value`, `low` and `high` (95%) in per cent; None unless `status` is ok, and then `note` says why. `inputs`: the
    names of the merged models. `variant`: differences of the merge from the paper's parameters. `prompts`: their
    format. `metrics`: all those of the task's record, as they are there. `tokens`: of an answer, in the mean. `alpha`,
    `seed`, `ratios`: of M3; `seed` also of DARE. `health`: of the answers, to the attacked prompt if there is one. Not
    in the CSV, for comparisons: `values` of each example by id, 0 to 1; `right` before and after an attack, for each
    sample; `completions_file`, of the raw completions; `is_share`: False for a metric such as perplexity, whose value
    is not in per cent and has no interval.
    """

    models: str = ""
    inputs: str = ""
    method: str = ""
    variant: str = ""
    prompts: str = PAPER
    mixup: bool = False
    dare: bool = False
    alpha: float | None = None
    seed: int | None = None
    ratios: str = ""
    dataset: str = ""
    attack: str = ""
    metric: str = ""
    metrics: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    examples: int | None = None
    tokens: float | None = None
    status: str = OK
    note: str = ""
    backend: str = ""
    command: str = ""
    evaluator_command: str = ""
    merge_command: str = ""
    merge_record: str = ""
    fingerprint: str = ""
    result_file: str = ""
    health: Health | None = None
    values: tuple[tuple[int | str, float], ...] | None = None
    right: tuple[tuple[bool, ...], tuple[bool, ...]] | None = None
    completions_file: str = ""
    is_share: bool = True

    @property
    def line(self) -> tuple:
        """The score's subject without seeds: scores of one line are draws of the same thing."""
        prompts = "" if self.prompts == PAPER else f"{self.prompts} prompts"
        variant = ", ".join(filter(None, (self.variant, prompts)))
        return (self.models, self.method, variant, self.mixup, self.dare, self.alpha, self.dataset, self.attack)

    @property
    def draw(self) -> tuple:
        return (self.seed, self.ratios)


def percent_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of a mean in per cent: Wilson's if each value is right or wrong, else by bootstrap."""
    if all(value in (0, 1) for value in values):
        low, high = wilson_interval(int(sum(values)), len(values))
    else:
        low, high = mean_interval(values)
    return 100 * low, 100 * high


def share_interval(share: float, examples: int) -> tuple[float, float]:
    """Wilson's 95% interval in per cent of a share whose single answers are not known."""
    low, high = wilson_interval(share * examples, examples)
    return 100 * low, 100 * high


_NOT_IN_CSV = ("health", "values", "right", "completions_file", "is_share")
COLUMNS = [field.name for field in fields(Score) if field.name not in _NOT_IN_CSV]
HEALTH_COLUMNS = [field.name for field in fields(Health) if field.name != "answers"]  # their number is `examples`


def scores_csv(scores: Sequence[Score]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *HEALTH_COLUMNS])
    for score in scores:
        cells = [getattr(score, column) for column in COLUMNS]
        cells = [round(cell, 6) if isinstance(cell, float) else cell for cell in cells]
        writer.writerow([*cells, *(getattr(score.health, column, None) for column in HEALTH_COLUMNS)])
    return text.getvalue()


@dataclass(frozen=True)
class Summary:
    """The scores of one line.

    `value`: the mean over the draws that have one. `low` and `high`: its 95% interval, None if the draws have different
    numbers of examples. For an accuracy it is over the examples, as if all draws gave the same answers, which is the
    widest possible; for a drop rate it is over draws and examples. `spread`: the standard deviation over the draws;
    `best`: the best draw; both None for a single score. `examples`: those of each draw.
    """

    scores: tuple[Score, ...]
    value: float | None = None
    low: float | None = None
    high: float | None = None
    spread: float | None = None
    best: float | None = None
    examples: int | None = None

    @property
    def lacking(self) -> list[Score]:
        return [score for score in self.scores if score.status != OK]

    @property
    def values(self) -> list[float]:
        return [score.value for score in self.scores if score.status == OK and score.value is not None]

    @property
    def metrics(self) -> set[str]:
        return {score.metric for score in self.scores if score.status == OK}

    @property
    def health_warning(self) -> str | None:
        """The faults of all draws' answers, in one line; None if few answers have one."""
        healths = [score.health for score in self.scores if score.health is not None]
        return total(healths).warning() if healths else None

    @property
    def draws(self) -> int:
        return len(self.scores) - len(self.lacking)

    @property
    def expected_draws(self) -> int:
        """Draws with or without a value. One draw may have a second, unreadable result beside its value."""
        return len({score.draw for score in self.scores})


Lines = dict[tuple, Summary]


def summaries(scores: Iterable[Score]) -> Lines:
    """The summary of each line, in the order of the scores."""
    lines: dict[tuple, list[Score]] = {}
    for score in scores:
        lines.setdefault(score.line, []).append(score)
    return {line: summarise(of_line) for line, of_line in lines.items()}


def summarise(scores: Sequence[Score]) -> Summary:
    """The summary of the draws of one line."""
    valid = [score for score in scores if score.status == OK]
    if not valid:
        return Summary(tuple(scores))
    examples = valid[0].examples if len({score.examples for score in valid}) == 1 else None
    if len(valid) == 1:
        return Summary(tuple(scores), valid[0].value, valid[0].low, valid[0].high, examples=examples)
    values = [score.value for score in valid]
    if not valid[0].is_share:
        return Summary(tuple(scores), mean(values), spread=stdev(values), examples=examples)
    low, high = _interval_of_mean(valid, mean(values), examples)
    best = min(values) if valid[0].metric == PDR else max(values)
    return Summary(tuple(scores), mean(values), low, high, stdev(values), best, examples)


def _interval_of_mean(draws: Sequence[Score], value: float, examples: int | None) -> tuple[float | None, float | None]:
    if examples is None:
        return None, None
    if draws[0].metric != PDR:
        return share_interval(value / 100, examples)
    before, after = zip(*(score.right for score in draws), strict=True)
    low, high = drop_rate_interval(before, after)
    return 100 * low, 100 * high


def gain(without: Summary, with_mixup: Summary) -> tuple[float, float, float] | None:
    """The mean gain of M3's draws in points, with the 95% interval of the paired bootstrap over draws and examples;
    None unless both sides have a value for each of the same examples."""
    scores = [[score for score in summary.scores if score.status == OK] for summary in (with_mixup, without)]
    if not all(scores) or any(score.values is None for score in (*scores[0], *scores[1])):
        return None
    tables = [[dict(score.values) for score in of_side] for of_side in scores]
    examples = list(tables[0][0])
    if any(table.keys() != tables[0][0].keys() for of_side in tables for table in of_side):
        return None
    first, second = ([[table[example] for example in examples] for table in of_side] for of_side in tables)
    low, high = paired_difference_interval([(first, second)])
    return 100 * (mean(map(mean, first)) - mean(map(mean, second))), 100 * low, 100 * high
