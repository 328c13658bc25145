"""Scores of the subjects of MergeBench, and what follows from them: relative scores, forgetting, comparisons."""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean

from inference_llms.evaluators import evalplus
from inference_llms.tasks import TASKS as OWN_TASKS
from scripts.mergebench.suite import EVALPLUS, PROGRAM, SAFETY, SAFETY_EVAL, BenchSet, Suite
from scripts.paper_tables.method_scores import randomisation_p
from scripts.paper_tables.names import Published
from scripts.paper_tables.results import TaskRecord, task_records
from utils.errors import UserError
from utils.intervals import mean_ratio_interval, paired_difference_interval, wilson_interval
from utils.json_files import read_json_object

EVALPLUS_NEEDS = "it needs all 164 of HumanEval, and tasks 2 to 809 of MBPP in --data_dir"

Values = Mapping[tuple[str, int | str], float]  # by task and example, from 0 to 1


@dataclass(frozen=True)
class SetScore:
    """A subject's score on a data set, from 0 to 1. `values`: the single answers'; empty if only the score is known.
    `note`: why there is no score. `tokens`: the mean of the answers'; None if none is generated or it is not known."""

    value: float | None = None
    values: Values = field(default_factory=dict)
    examples: int = 0
    note: str = ""
    tokens: float | None = None


SubjectScores = Mapping[str, SetScore]  # by data set


@dataclass(frozen=True)
class Interval:
    """A value with its 95% interval; None if the single answers are not known."""

    value: float
    low: float | None = None
    high: float | None = None


def read_scores(folder: Path, data_sets: Iterable[BenchSet]) -> dict[str, SetScore]:
    """A subject's score on each data set, from the results below its `folder`."""
    records = {record.task: record for record in task_records(folder)} if folder.is_dir() else {}
    return {one.name: _read_set(folder, records, one) for one in data_sets}


def _read_set(folder: Path, records: Mapping[str, TaskRecord], data_set: BenchSet) -> SetScore:
    if data_set.harness == SAFETY_EVAL:
        return _read_safety(folder / f"{SAFETY}_eval.json", data_set)
    found: dict[str, TaskRecord] = {}
    for name in data_set.task_names:
        of_name = {task: one for task, one in records.items() if task == name or task.startswith(f"{name}_")}
        if not of_name:
            return SetScore(note=f"{name} has not run")
        found |= of_name
    try:
        parts = [
            replace(_read_record(record, data_set), tokens=record.content.get("tokens_per_answer"))
            for record in found.values()
        ]
        return _joined(parts, data_set)
    except (UserError, KeyError, TypeError, ValueError) as error:
        return SetScore(note=str(error))


def _read_record(record: TaskRecord, data_set: BenchSet) -> SetScore:
    """A task's score. Raises UserError if its record or its files are damaged or not judged."""
    if record.fault:
        raise UserError(record.fault)
    if data_set.harness == PROGRAM:
        verdicts = OWN_TASKS[record.task].evaluator.read(tuple(record.files))
        if verdicts is None:
            raise UserError(f"{record.task} is not judged yet")
        values = dict(zip(((record.task, one) for one in verdicts.ids), verdicts.values or (), strict=False))
        return SetScore(verdicts.score, values, verdicts.examples)
    if data_set.harness == EVALPLUS:
        return _read_evalplus(record)
    content = record.content
    if data_set.metric not in content:
        known = ", ".join(content.get("metrics", []))
        raise UserError(f"{record.task} has no metric {data_set.metric}; it has {known}")
    rows = [json.loads(line) for file in record.files for line in file.read_text(encoding="utf-8").splitlines()]
    values = {(record.task, row["id"]): row.get(data_set.metric) for row in rows}
    if not all(isinstance(value, int | float) for value in values.values()):
        values = {}  # the metric is not a mean over answers
    return SetScore(content[data_set.metric], {key: float(value) for key, value in values.items()}, content["examples"])


def _read_evalplus(record: TaskRecord) -> SetScore:
    """The score in EvalPlus's results, which it writes beside the programs. Raises UserError if there is none."""
    samples = evalplus_samples(record)
    if samples is None:
        raise UserError(f"{record.task}: EvalPlus does not take these answers; {EVALPLUS_NEEDS}")
    verdicts = read_json_object(evalplus.results_file(samples), f"run {record.content['evalplus_command']}")["eval"]
    values = {
        (record.task, example): float(answers[0]["base_status"] == answers[0]["plus_status"] == "pass")
        for example, answers in verdicts.items()
    }
    return SetScore(mean(values.values()), values, len(values))


def evalplus_samples(record: TaskRecord) -> Path | None:
    """The programs that EvalPlus's command on record judges; None without a command."""
    command = record.content.get("evalplus_command")
    return Path(shlex.split(command)[-1]) if command else None


def evalplus_commands(results_dir: Path) -> list[str]:
    """EvalPlus's commands for the programs that it has not judged yet."""
    commands = []
    for record in task_records(results_dir):
        samples = None if record.fault else evalplus_samples(record)
        if samples is not None and not evalplus.results_file(samples).is_file():
            commands.append(record.content["evalplus_command"])
    return commands


def _joined(parts: Sequence[SetScore], data_set: BenchSet) -> SetScore:
    """The tasks of a data set as one: over all examples."""
    examples = sum(part.examples for part in parts)
    value = sum(part.value * part.examples for part in parts) / examples
    values = {key: one for part in parts for key, one in part.values.items()}
    if len(values) != examples:
        values = {}
    tokens = None
    if all(part.tokens for part in parts):  # likelihoods have 0 tokens
        tokens = sum(part.tokens * part.examples for part in parts) / examples
    values = {key: _from_0_to_1(one, data_set) for key, one in values.items()}
    return SetScore(_from_0_to_1(value, data_set), values, examples, tokens=tokens)


def _from_0_to_1(value: float, data_set: BenchSet) -> float:
    share = value / data_set.best
    return 1 - share if data_set.lower_is_better else share


def _read_safety(path: Path, data_set: BenchSet) -> SetScore:
    """The score in the report of safety-eval, which has no single answers."""
    try:
        value = read_json_object(path, "run its step again")[data_set.tasks[0]][data_set.metric]
        return SetScore(_from_0_to_1(float(value), data_set), {}, data_set.examples)
    except (UserError, KeyError, TypeError, ValueError):
        return SetScore(note="safety-eval has not run")


def domain_score(scores: SubjectScores, data_sets: Sequence[BenchSet]) -> Interval | None:
    """The mean over a domain's data sets; None if one has no score. The interval of a single set is Wilson's."""
    found = [scores[one.name] for one in data_sets]
    if any(score.value is None for score in found):
        return None
    if len(found) == 1 and found[0].values:
        return Interval(found[0].value, *wilson_interval(found[0].value * found[0].examples, found[0].examples))
    nothing = [SetScore(0.0, dict.fromkeys(score.values, 0.0), score.examples) for score in found]
    return _difference(found, nothing)


def relative_score(
    scores: SubjectScores, specialists: Mapping[str, SubjectScores], suite: Suite
) -> tuple[Interval | None, list[str]]:
    """The mean over the domains of a subject's score divided by that of the domain's specialist, and the domains that
    could be compared. In the interval's samples, sets without single answers keep their scores."""
    groups, domains = [], []
    for domain in suite.domains:
        pairs = [(scores[one.name], specialists[domain][one.name]) for one in suite.sets_of(domain)]
        if all(a.value is not None and b.value is not None for a, b in pairs) and sum(b.value for _, b in pairs):
            groups.append(pairs)
            domains.append(domain)
    if not groups:
        return None, []
    value = mean(sum(a.value for a, _ in pairs) / sum(b.value for _, b in pairs) for pairs in groups)
    answers = [[_answers(a, b) for a, b in pairs] for pairs in groups]
    if not any(len(first) > 1 for pairs in answers for first, _ in pairs):
        return Interval(value), domains
    return Interval(value, *mean_ratio_interval(answers)), domains


def _answers(first: SetScore, second: SetScore) -> tuple[list[float], list[float]]:
    """The values of the examples that both answered; the scores themselves if the single answers are not known."""
    both = [key for key in first.values if key in second.values]
    if not both:
        return [first.value], [second.value]
    return [first.values[key] for key in both], [second.values[key] for key in both]


def forgetting(base: SubjectScores, scores: SubjectScores, data_sets: Sequence[BenchSet]) -> Interval | None:
    """The base's score minus the subject's, averaged over these data sets; None without a set that both ran."""
    pairs = [(base[one.name], scores[one.name]) for one in data_sets]
    pairs = [(a, b) for a, b in pairs if a.value is not None and b.value is not None]
    return _difference([a for a, _ in pairs], [b for _, b in pairs]) if pairs else None


def _difference(first: Sequence[SetScore], second: Sequence[SetScore]) -> Interval:
    """The mean difference over sets, with the paired bootstrap's interval over the sets whose answers are known."""
    value = mean(a.value - b.value for a, b in zip(first, second, strict=True))
    answers = [_answers(a, b) for a, b in zip(first, second, strict=True)]
    known = [([a], [b]) for a, b in answers if len(a) > 1]
    if not known:
        return Interval(value)
    fixed = sum(a[0] - b[0] for a, b in answers if len(a) == 1)
    low, high = paired_difference_interval(known)
    return Interval(value, *((len(known) * end + fixed) / len(answers) for end in (low, high)))


def compared(scores: SubjectScores, baseline: SubjectScores, suite: Suite) -> tuple[Interval, float] | None:
    """The mean difference from the baseline over the domains' data sets whose answers are right or wrong and known,
    with its interval and its p-value (`randomisation_p`); None without such a set."""
    pairs = []
    for one in suite.data_sets:
        first, second = scores[one.name].values, baseline[one.name].values
        is_verdict = {*first.values(), *second.values()} <= {0.0, 1.0}
        if one.domain in suite.domains and first and first.keys() == second.keys() and is_verdict:
            pairs.append((first, second))
    if not pairs:
        return None
    value = mean(mean(a.values()) - mean(b.values()) for a, b in pairs)
    interval = paired_difference_interval([([list(a.values())], [[b[key] for key in a]]) for a, b in pairs])
    return Interval(value, *interval), randomisation_p(pairs)


def published_scores(published: Mapping[str, Published], suite: Suite) -> dict[str, SetScore]:
    """Published values as scores, for the data sets of the suite with the same name."""
    empty = SetScore(note="not published")
    found = {name: SetScore(one.value / 100) for name, one in published.items()}
    return {one.name: found.get(one.name, empty) for one in suite.data_sets}
