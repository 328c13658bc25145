"""Choice of a search: the draw with the largest mean gain over the fine-tunes on the validation part; and the summary
of a results file.

A candidate's gain in a task is its score minus that of the fine-tune made for the task, over the same examples. Draws
are compared over the largest number of examples that any draw has reached in every task.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, product

from scripts.mixup_search.search_space import (
    EQUAL_RATIOS,
    Candidate,
    alone,
    drawing_order,
    number_of_draws,
    of_model,
    option_and_model,
)
from scripts.mixup_search.store import TEST, VALIDATION, Part, Result, SearchStore, health_of_answers
from utils.errors import UserError
from utils.intervals import paired_difference_interval

RULE = (
    "The chosen draw has the largest mean gain on the validation part. Its gain in a task is its score minus the score "
    "of the fine-tune made for the task, over the same examples; the mean is over the tasks. Only draws that reached "
    "the largest number of examples are compared, and a tie goes to the first drawn. The test part has no influence."
)

Scores = dict[str, dict[str, Result]]  # by candidate and task


def latest_scores(results: Sequence[Result], part: Part) -> Scores:
    """Each candidate's result in each task, over the most examples of the part that it has reached."""
    latest: Scores = {}
    for result in sorted(results, key=lambda result: result.examples):
        if result.part == part:
            latest.setdefault(result.candidate, {})[result.task] = result
    return latest


def scores_over(results: Sequence[Result], part: Part, sizes: Mapping[str, int]) -> Scores:
    """The results over exactly these numbers of examples, by candidate."""
    scores: Scores = {}
    for result in results:
        if result.part == part and result.examples == sizes.get(result.task):
            scores.setdefault(result.candidate, {})[result.task] = result
    return scores


def comparable_scores(
    results: Sequence[Result], draws: Sequence[str], rungs: Sequence[int], sizes: Mapping[str, int]
) -> Scores:
    """The validation scores on the highest of the `rungs` at which one of the `draws` has a score in every task, by
    candidate; empty if no draw has. `sizes`: the number of validation examples of each task."""
    for rung in reversed(rungs):
        scores = scores_over(results, VALIDATION, {task: min(rung, size) for task, size in sizes.items()})
        if any(scores.get(name, {}).keys() == sizes.keys() for name in draws):
            return scores
    return {}


def gains(scores: Scores, role_of_task: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """The gain in each task by candidate, of the candidates with a score in every task; empty without the scores of the
    fine-tunes. `role_of_task`: the role of the fine-tune made for each task."""
    finetuned = {task: scores.get(alone(role), {}).get(task) for task, role in role_of_task.items()}
    if None in finetuned.values():
        return {}
    return {
        name: {task: of_task[task].score - result.score for task, result in finetuned.items()}
        for name, of_task in scores.items()
        if of_task.keys() >= finetuned.keys()
    }


def mean_gain(gains_by_task: Mapping[str, float]) -> float:
    """The mean over the tasks, rounded so that gains which differ by rounding alone are equal."""
    return round(sum(gains_by_task.values()) / len(gains_by_task), 12)


def best(gains_by_candidate: Mapping[str, Mapping[str, float]], draws: Sequence[str]) -> str | None:
    """The draw with the largest mean gain, the first in a tie; None if no draw has one."""
    scored = [name for name in draws if name in gains_by_candidate]
    return max(scored, key=lambda name: mean_gain(gains_by_candidate[name]), default=None)


def pareto_front(scores: Mapping[str, Sequence[float]]) -> list[str]:
    """The candidates for which no other is at least as good in every task and better in one."""

    def beats(other: Sequence[float], this: Sequence[float]) -> bool:
        return tuple(other) != tuple(this) and all(a >= b for a, b in zip(other, this, strict=True))

    return [name for name, this in scores.items() if not any(beats(other, this) for other in scores.values())]


@dataclass(frozen=True)
class Difference:
    """The score of one candidate minus the score of another, with its 95% interval, over the `examples` that both
    answered."""

    mean: float
    low: float
    high: float
    examples: int


RightByExample = Mapping[int | str, bool]  # whether each example was answered right


def paired_difference(pairs: Sequence[tuple[RightByExample, RightByExample]], seed: int) -> Difference | None:
    """The mean difference over tasks of two candidates' scores, by paired bootstrap over the examples of each task;
    None if a task has no example that both answered. `pairs`: for each task the two candidates' verdicts."""
    answers = []
    for first, second in pairs:
        both = [example for example in first if example in second]
        if not both:
            return None
        answers.append(([[first[example] for example in both]], [[second[example] for example in both]]))
    # Exact, because the report states the sign of the mean.
    means = [Fraction(sum(first) - sum(second), len(first)) for [first], [second] in answers]
    interval = paired_difference_interval(answers, seed)
    return Difference(float(sum(means) / len(means)), *interval, sum(len(first) for [first], _ in answers))


class SearchSummary:
    """The findings of a results file so far. Raises UserError if it has no result yet.

    Candidates are in the order in which they were added; `references` are those that are not draws.
    compared: validation scores over the examples that decide the choice. compared_draws: the draws that have these.
    reached: validation scores over the most examples of each candidate. numbers: by task, how many examples decide.
    baseline: the reference that the choice is tested against, once it is stored: equal ratios, or the plain choice of a
    method that takes no ratios. has_ratios: whether the draws have ratios. varied: the options whose values differ
    between draws. gains: by candidate and task. tested: scores on the test part. differences: of the chosen draw minus
    the baseline on the test part, by task and, for several tasks, `mean`. faults: a warning about faulty answers, by
    candidate and task.
    """

    def __init__(self, store: SearchStore):
        results, identity = store.results(), store.identity
        if not results:
            raise UserError(f"{store.path}: holds no results yet; run the search first")
        self.identity, self.roles, self.tasks = identity, identity["roles"], identity["tasks"]
        self.candidates = store.candidates()
        self.draws = [candidate for candidate in self.candidates if candidate.kind == "draw"]
        self.references = [candidate for candidate in self.candidates if candidate.kind != "draw"]
        self.baseline_name = identity.get("baseline", EQUAL_RATIOS)
        self.baseline = next((one for one in self.references if one.name == self.baseline_name), None)
        self.has_ratios = self.baseline_name == EQUAL_RATIOS
        self.varied = _varied(self.draws)
        self.reached, self.tested = latest_scores(results, VALIDATION), latest_scores(results, TEST)
        names = [draw.name for draw in self.draws]
        self.compared = comparable_scores(results, names, identity["rungs"], identity["validation"])
        self.compared_draws = [draw for draw in self.draws if has_all(self.compared, draw, self.tasks)]
        self.numbers: dict[str, int] = {}
        if self.compared_draws:
            scores = self.compared[self.compared_draws[0].name]
            self.numbers = {task: scores[task].examples for task in self.tasks}
        self.gains = gains(self.compared, identity["role_of_task"])
        best_name = best(self.gains, names)
        self.chosen = next((draw for draw in self.draws if draw.name == best_name), None)
        self.differences = self._differences(store) if self.chosen is not None and self.baseline is not None else {}
        self.faults = self._faults(store)

    def _differences(self, store: SearchStore) -> dict[str, Difference]:
        pairs: dict[str, list] = {task: [] for task in self.tasks}
        for candidate in (self.chosen, self.baseline):
            for task in self.tasks:
                answers = store.answers(candidate.name, task, TEST)
                pairs[task].append({example: answer.right for example, answer in answers.items()})
        compared = {task: [pair] for task, pair in pairs.items()}
        if len(pairs) > 1:
            compared["mean"] = list(pairs.values())
        differences = {name: paired_difference(answers, self.identity["seed"]) for name, answers in compared.items()}
        return {name: difference for name, difference in differences.items() if difference is not None}

    def _faults(self, store: SearchStore) -> dict[str, dict[str, str]]:
        faults: dict[str, dict[str, str]] = {}
        for candidate, task in product(self.candidates, self.tasks):
            parts = (store.answers(candidate.name, task, part).values() for part in (VALIDATION, TEST))
            answers = list(chain(*parts))
            if answers and (warning := health_of_answers(answers).warning()):
                faults.setdefault(candidate.name, {})[task] = warning
        return faults

    def label(self, name: str) -> str:
        """The name of a varied option for people: `weight of math` for one model's number."""
        option, model = option_and_model(name)
        return option if model is None else f"{option} of {self.roles[model]}"

    def mean_gain(self, candidate: Candidate) -> float | None:
        return mean_gain(self.gains[candidate.name]) if candidate.name in self.gains else None

    def front(self, tasks: Sequence[str]) -> list[str]:
        """The names of the draws on the Pareto front of these tasks."""
        return pareto_front(
            {draw.name: [self.compared[draw.name][task].score for task in tasks] for draw in self.compared_draws}
        )

    def fault_lines(self) -> list[str]:
        """A warning for each task with faulty answers, with the candidates, the chosen draw first."""
        names = sorted(self.faults, key=lambda name: self.chosen is None or name != self.chosen.name)
        lines = []
        for task in self.tasks:
            faulty = [name for name in names if task in self.faults[name]]
            if faulty:
                others = f" and {len(faulty) - 1} more" if len(faulty) > 1 else ""
                lines.append(f"{task}, {faulty[0]}{others}: {self.faults[faulty[0]][task]}")
        return lines

    def missing(self) -> Iterator[str]:
        """A line for each unfinished part of the search."""
        identity, numbers, sizes = self.identity, self.numbers, self.identity["validation"]
        drawn, wanted = len(self.draws), number_of_draws(identity)
        if drawn < wanted:
            yield f"{wanted - drawn} of {wanted} draws are not drawn yet"
        for task in self.tasks:
            without = [draw.name for draw in self.draws if task not in self.reached.get(draw.name, {})]
            if without:
                yield f"{task}: no validation score yet for {', '.join(without)}"
        short = [f"{number} of {sizes[task]} {task}" for task, number in numbers.items() if number < sizes[task]]
        if short:
            yield f"no draw has the whole validation part yet; draws are compared by {', '.join(short)} examples"
        needed = [(alone(role), task) for task, role in identity["role_of_task"].items()]
        for name, task in [*needed, *((self.baseline_name, task) for task in self.tasks)]:
            done = _examples(self.reached, name, task)
            if done < numbers.get(task, 1):
                yield f"{name}: {done} of {numbers.get(task, sizes[task])} validation examples of {task} are scored"
        if self.chosen is None:
            yield "no draw can be chosen or tested yet"
            return
        for candidate in (self.chosen, self.baseline):
            for task, size in identity["test"].items():
                done = 0 if candidate is None else _examples(self.tested, candidate.name, task)
                if candidate is not None and done < size:
                    yield f"{candidate.name}: {done} of {size} test examples of {task} are scored"


def _varied(draws: Sequence[Candidate]) -> list[str]:
    if not draws:
        return []
    parameters = draws[0].parameters
    names = ["alpha"]
    for name, value in parameters.all_values.items():
        names += [of_model(name, model) for model in range(len(value))] if isinstance(value, tuple) else [name]
    several = [name for name in names if len({draw.option(name) for draw in draws}) > 1]
    return drawing_order(parameters, several)


def has_all(scores: Scores, candidate: Candidate, tasks: Sequence[str]) -> bool:
    """Whether this candidate has a score in each of the tasks."""
    return all(task in scores.get(candidate.name, {}) for task in tasks)


def _examples(scores: Scores, name: str, task: str) -> int:
    result = scores.get(name, {}).get(task)
    return 0 if result is None else result.examples
