"""The overview of merges: means over tasks, relative to the fine-tunes, tokens, and what M3 changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

import numpy as np

from inference_llms.tasks import TASKS_OF_ROLE
from scripts.paper_tables.method_scores import LEVEL, holm
from scripts.paper_tables.names import RATIOS_GIVEN, ROLES, dataset_name
from scripts.paper_tables.scores import OK, Lines, Summary
from scripts.paper_tables.tables import NOTHING, TASKS, CellLines, Table, signed, with_interval
from utils.intervals import mean_ratio_of_draws_interval, paired_difference_interval

_SAMPLES = 10_000
_AT_ONCE = 10_000_000  # signs drawn at a time
REMARK = (
    "Mean: over the tasks of the row, each over its draws. Of the fine-tunes: the score divided by that of the task's "
    "own fine-tune, over the tasks whose fine-tune was merged and was run alone in the same results folder. Intervals "
    "are 95%, by the bootstrap over draws and examples. M3 − without: the difference of the means on the same "
    "questions. p: the paired randomisation test over questions, with Holm's correction for all differences of this "
    f"table. It knows only these draws, so * marks a difference of at most {LEVEL:g} whose interval excludes 0 too."
)

Draws = list[list[float]]


@dataclass(frozen=True)
class MergeScores:
    """A merge's summaries by data set. `key`: models, method, variant, M3, DARE, α."""

    key: tuple
    by_set: Mapping[str, Summary]

    @property
    def without_mixup(self) -> tuple:
        models, method, variant, _, dare, _ = self.key
        plain = ", ".join(part for part in variant.split(", ") if part != RATIOS_GIVEN)
        return (models, method, plain, False, dare, None)

    @property
    def mean(self) -> float:
        return mean(summary.value for summary in self.by_set.values())

    @property
    def tokens(self) -> float | None:
        """The mean number of tokens of an answer; None if a run did not count them."""
        counted = [score.tokens for summary in self.by_set.values() for score in summary.scores if score.status == OK]
        return None if None in counted or not counted else mean(counted)


def overview_table(lines: Lines) -> Table:
    """Rows: merges, with M3 and without; columns: means over the tasks, and the difference that M3 makes."""
    head = ["models", "method", "DARE", "M3", "tasks", "mean", "of the fine-tunes", "tokens per answer"]
    table = Table("overview", "All merges", [*head, "M3 − without", "p, Holm"], 4)
    merges = _merges(lines)
    alone = {(line[0], line[2]): summaries for line, summaries in _by_merge(lines).items() if not line[1]}
    changes = {key: change for key, merge in merges.items() if (change := _change(merge, merges)) is not None}
    corrected = holm({key: change[-1] for key, change in changes.items()})
    for key, merge in merges.items():
        models, method, variant, mixup, dare, alpha = key
        labels = [models, ", ".join(filter(None, (method, variant))), "yes" if dare else "no"]
        labels.append(f"α = {alpha:g}" if alpha is not None else "yes" if mixup else "no")
        tokens = NOTHING if merge.tokens is None else f"{merge.tokens:.0f}"
        cells: list[CellLines] = [
            (", ".join(merge.by_set),),
            (with_interval(merge.mean, *_interval(merge)),),
            (_relative(merge, alone),),
            (tokens,),
        ]
        if key in changes:
            value, low, high, _ = changes[key]
            mark = "*" if corrected[key] <= LEVEL and not low <= 0 <= high else ""
            cells += [(f"{signed(value)} [{signed(low)}, {signed(high)}]",), (f"{corrected[key]:.2g}{mark}",)]
        else:
            cells += [(NOTHING,), (NOTHING,)]
        table.add(labels, cells)
    if table.rows:
        table.remarks.append(REMARK)
    return table


def _merges(lines: Lines) -> dict[tuple, MergeScores]:
    """The merges with a value for at least one set, in the order of the lines, without single models."""
    found = {}
    for key, summaries in _by_merge(lines).items():
        if key[1] and summaries:
            ordered = {name: summaries[name] for name in (*TASKS, *summaries) if name in summaries}
            found[key] = MergeScores(key, ordered)
    return found


def _by_merge(lines: Lines) -> dict[tuple, dict[str, Summary]]:
    by_merge: dict[tuple, dict[str, Summary]] = {}
    for line, summary in lines.items():
        is_share = all(score.is_share for score in summary.scores)
        if summary.value is not None and is_share and not line[-1]:  # not of an attack
            by_merge.setdefault(line[:6], {})[line[6]] = summary
    return by_merge


def _draws(summary: Summary) -> tuple[list[int | str], Draws] | None:
    """The examples of a summary, and the value of each by draw; None if draws have other examples or no values."""
    tables = [dict(score.values) for score in summary.scores if score.status == OK and score.values is not None]
    if len(tables) != summary.draws or not tables or any(table.keys() != tables[0].keys() for table in tables):
        return None
    examples = list(tables[0])
    return examples, [[table[example] for example in examples] for table in tables]


def _interval(merge: MergeScores) -> tuple[float | None, float | None]:
    drawn = [_draws(summary) for summary in merge.by_set.values()]
    if None in drawn:
        return None, None
    low, high = mean_ratio_of_draws_interval([(draws, [[1.0] * len(draws[0])]) for _, draws in drawn])
    return 100 * low, 100 * high


def _pairs(first: Mapping[str, Summary], second: Mapping[str, Summary]) -> list[tuple[Draws, Draws]] | None:
    """The draws of both on the same examples, by data set; None if a set's examples differ."""
    pairs = []
    for name, summary in first.items():
        one, other = _draws(summary), _draws(second[name]) if name in second else None
        if one is None or other is None or set(one[0]) != set(other[0]):
            return None
        order = [other[0].index(example) for example in one[0]]
        pairs.append((one[1], [[draw[place] for place in order] for draw in other[1]]))
    return pairs


def _relative(merge: MergeScores, alone: Mapping[tuple[str, str], Mapping[str, Summary]]) -> str:
    """The mean share of the fine-tunes' scores, in per cent, with its interval."""
    specialists = _specialists(merge)
    sets = {name: merge.by_set[name] for name in specialists if name in alone.get(specialists[name], {})}
    pairs = _pairs(sets, {name: alone[specialists[name]][name] for name in sets}) if sets else None
    if not pairs or any(not np.any(second) for _, second in pairs):
        return NOTHING
    share = mean(np.mean(first) / np.mean(second) for first, second in pairs)
    low, high = mean_ratio_of_draws_interval(pairs)
    text = with_interval(100 * share, 100 * low, 100 * high)
    return text if len(sets) == len(merge.by_set) else f"{text} on {', '.join(sets)}"


def _specialists(merge: MergeScores) -> dict[str, tuple[str, str]]:
    """The name of the fine-tune of each set, for sets whose fine-tune was merged, and the variant of its score by the
    same prompts."""
    names = {name: role for role, name in ROLES.items()}
    roles = [names.get(part) for part in merge.key[0].split(" & ")]
    found = {}
    for name, summary in merge.by_set.items():
        inputs = summary.scores[0].inputs.split(" + ")
        for role, model in zip(roles, inputs, strict=False):
            if role is not None and name in map(dataset_name, TASKS_OF_ROLE[role]):
                found[name] = model.split("/")[-1], replace(summary.scores[0], variant="").line[2]
    return found


def _change(merge: MergeScores, merges: Mapping[tuple, MergeScores]) -> tuple[float, float, float, float] | None:
    """The difference that M3 makes in points, its interval, and its p-value; None without the same merge without M3 on
    the same questions."""
    plain = merges.get(merge.without_mixup)
    if not merge.key[3] or plain is None or plain.by_set.keys() != merge.by_set.keys():
        return None
    pairs = _pairs(merge.by_set, plain.by_set)
    if pairs is None:
        return None
    difference = mean(np.mean(first) - np.mean(second) for first, second in pairs)
    low, high = paired_difference_interval(pairs)
    return 100 * difference, 100 * low, 100 * high, randomisation_p_of_draws(pairs)


def randomisation_p_of_draws(pairs: Sequence[tuple[Draws, Draws]]) -> float:
    """The two-sided p-value of the mean difference over tasks, by the paired randomisation test over questions: if the
    two are equally good, the sign of each question's difference, averaged over the draws, is a coin's."""
    weights = np.concatenate(
        [(np.mean(first, axis=0) - np.mean(second, axis=0)) / len(first[0]) / len(pairs) for first, second in pairs]
    )
    observed, weights = abs(weights.sum()), np.abs(weights[weights != 0])
    generator, as_large, rounding = np.random.default_rng(0), 0, 1e-12
    step = max(_AT_ONCE // max(len(weights), 1), 1)
    for first in range(0, _SAMPLES, step):
        signs = generator.integers(0, 2, (min(step, _SAMPLES - first), len(weights)), dtype=np.int8)
        as_large += np.count_nonzero(np.abs((2.0 * signs - 1) @ weights) >= observed - rounding)
    return float((1 + as_large) / (1 + _SAMPLES))
