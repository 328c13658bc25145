"""What a results file tells so far: scores, the choice, the test, and what is missing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.mixup_search.candidate import TEST, VALIDATION, Candidate, health_of_answers
from scripts.mixup_search.choice import (
    Difference,
    Scores,
    best,
    comparable_scores,
    gains,
    latest_scores,
    mean_gain,
    paired_difference,
    pareto_front,
)
from scripts.mixup_search.search_space import OPTIONS, alone, option_value
from scripts.mixup_search.store import SearchStore
from utils.errors import UserError


@dataclass(frozen=True)
class Findings:
    """A search's candidates in the order of their drawing, and what is known of them.

    compared: scores on the validation part over the examples that the choice is made by; reached: over the most that
    each candidate has answered. gains: by candidate and task, of those compared. tested: scores on the test part.
    differences: by task, and for `mean` of several, of the chosen less equal ratios on the test part. faults: by
    candidate and task, of those with faulty answers, what is wrong with them.
    """

    identity: dict[str, Any]
    candidates: list[Candidate]
    compared: Scores
    reached: Scores
    gains: dict[str, dict[str, float]]
    chosen: Candidate | None
    tested: Scores
    differences: dict[str, Difference]
    faults: dict[str, dict[str, str]]

    @property
    def roles(self) -> list[str]:
        return self.identity["roles"]

    @property
    def tasks(self) -> list[str]:
        return self.identity["tasks"]

    @property
    def draws(self) -> list[Candidate]:
        return [candidate for candidate in self.candidates if candidate.kind == "draw"]

    @property
    def compared_draws(self) -> list[Candidate]:
        """The draws that the choice is made among."""
        return [draw for draw in self.draws if has_all(self.compared, draw, self.tasks)]

    @property
    def references(self) -> list[Candidate]:
        return [candidate for candidate in self.candidates if candidate.kind != "draw"]

    @property
    def equal(self) -> Candidate | None:
        return _equal(self.candidates)

    @property
    def varied(self) -> list[str]:
        """The options that the draws do not all have the same value of."""
        return [name for name in OPTIONS if len({option_value(draw, name) for draw in self.draws}) > 1]

    @property
    def numbers(self) -> dict[str, int]:
        """How many validation examples of each task the draws are compared by; empty where none are yet."""
        if not self.compared_draws:
            return {}
        return {task: self.compared[self.compared_draws[0].name][task].examples for task in self.tasks}

    def mean_gain(self, candidate: Candidate) -> float | None:
        return mean_gain(self.gains[candidate.name]) if candidate.name in self.gains else None

    def fault_lines(self) -> list[str]:
        """A line for each task with faulty answers: whose, the chosen draw's first, and what is wrong with them."""
        names = sorted(self.faults, key=lambda name: self.chosen is None or name != self.chosen.name)
        lines = []
        for task in self.tasks:
            faulty = [name for name in names if task in self.faults[name]]
            if faulty:
                others = f" and {len(faulty) - 1} more" if len(faulty) > 1 else ""
                lines.append(f"{task}, {faulty[0]}{others}: {self.faults[faulty[0]][task]}")
        return lines

    def front(self, tasks: Sequence[str]) -> list[str]:
        """The names of the draws on the Pareto front of these tasks."""
        return pareto_front(
            {draw.name: [self.compared[draw.name][task].score for task in tasks] for draw in self.compared_draws}
        )

    def missing(self) -> list[str]:
        """What is still to be done, a line for each."""
        return [*_missing_draws(self), *_missing_references(self), *_missing_tests(self)]


def find_out(store: SearchStore) -> Findings:
    """Read what a results file tells. Raises UserError where it has no result yet."""
    identity, results, candidates = store.identity, store.results(), store.candidates()
    if not results:
        raise UserError(f"{store.path}: holds no results yet; run the search first")
    draws = [candidate.name for candidate in candidates if candidate.kind == "draw"]
    compared = comparable_scores(
        results, VALIDATION, draws, {task: identity["validation"][task] for task in identity["tasks"]}
    )
    found_gains = gains(compared, _finetuned(identity))
    chosen = next((candidate for candidate in candidates if candidate.name == best(found_gains, draws)), None)
    return Findings(
        identity,
        candidates,
        compared,
        latest_scores(results, VALIDATION),
        found_gains,
        chosen,
        latest_scores(results, TEST),
        _differences(store, chosen, _equal(candidates)),
        _faults(store, candidates),
    )


def has_all(scores: Scores, candidate: Candidate, tasks: Sequence[str]) -> bool:
    """Whether there is a score of this candidate in each of the tasks."""
    return all(task in scores.get(candidate.name, {}) for task in tasks)


def _equal(candidates: Sequence[Candidate]) -> Candidate | None:
    return next((candidate for candidate in candidates if candidate.kind == "equal"), None)


def _finetuned(identity: Mapping[str, Any]) -> dict[str, str]:
    return {task: alone(identity["role_of_task"][task]) for task in identity["tasks"]}


def _differences(store: SearchStore, chosen: Candidate | None, equal: Candidate | None) -> dict[str, Difference]:
    if chosen is None or equal is None:
        return {}

    def right(candidate: Candidate, task: str) -> dict[int | str, bool]:
        return {example: answer.right for example, answer in store.answers(candidate.name, task, TEST).items()}

    pairs = {task: (right(chosen, task), right(equal, task)) for task in store.identity["tasks"]}
    seed = store.identity["seed"]
    found = {task: paired_difference([pair], seed) for task, pair in pairs.items()}
    if len(pairs) > 1:
        found["mean"] = paired_difference(list(pairs.values()), seed)
    return {name: difference for name, difference in found.items() if difference is not None}


def _faults(store: SearchStore, candidates: Sequence[Candidate]) -> dict[str, dict[str, str]]:
    faults: dict[str, dict[str, str]] = {}
    for candidate in candidates:
        for task in store.identity["tasks"]:
            answers = [*store.answers(candidate.name, task, VALIDATION).values()]
            answers += store.answers(candidate.name, task, TEST).values()
            if answers and (warning := health_of_answers(answers).warning()):
                faults.setdefault(candidate.name, {})[task] = warning
    return faults


def _missing_draws(findings: Findings) -> list[str]:
    identity, lines = findings.identity, []
    drawn, wanted = len(findings.draws), identity["num_draws"]
    if drawn < wanted and identity["draw_by"] != "grid":  # a lattice may have fewer points
        lines.append(f"{wanted - drawn} of {wanted} draws are not drawn yet")
    behind = [draw.name for draw in findings.draws if not has_all(findings.reached, draw, findings.tasks)]
    if behind:
        lines.append(f"no validation score in every task yet: {', '.join(behind)}")
    sizes = identity["validation"]
    short = [f"{number} of {sizes[task]} {task}" for task, number in findings.numbers.items() if number < sizes[task]]
    if short:
        lines.append(
            f"no draw has answered the whole validation part yet; they are compared by {', '.join(short)} examples"
        )
    return lines


def _missing_references(findings: Findings) -> list[str]:
    lines = [
        f"{name}: no score on the same validation examples of {task} yet, so that no gains can be told"
        for task, name in _finetuned(findings.identity).items()
        if task not in findings.compared.get(name, {})
    ]
    if findings.equal is None or not has_all(findings.compared, findings.equal, findings.tasks):
        lines.append("equal ratios: no score on the same validation examples of every task yet")
    return lines


def _missing_tests(findings: Findings) -> list[str]:
    if findings.chosen is None:
        return ["no draw can be chosen yet, and nothing be tested"]
    lines = []
    for candidate in (findings.chosen, findings.equal):
        of_candidate = {} if candidate is None else findings.tested.get(candidate.name, {})
        for task in findings.tasks:
            size, done = findings.identity["test"][task], of_candidate[task].examples if task in of_candidate else 0
            if candidate is not None and done < size:
                lines.append(f"{candidate.name}: {done} of {size} test examples of {task} are scored")
    return lines
