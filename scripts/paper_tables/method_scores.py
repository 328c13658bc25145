"""Scores of the table of methods, and their comparison with tuned task arithmetic."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import numpy as np

from model_merging_methods.methods import METHODS
from scripts.mixup_search.choice import Difference, RightByExample, latest_scores, paired_difference
from scripts.mixup_search.report import save_command
from scripts.mixup_search.search_space import PLAIN_CHOICE
from scripts.mixup_search.store import TEST, SearchStore, health_of_answers
from scripts.paper_tables.cells import DONE, CellState, merge_of_options, search_results
from scripts.paper_tables.names import models_name
from scripts.paper_tables.results import SYMBOLS, ResultsFolder, why_missing
from scripts.paper_tables.tuning import BASELINE
from utils.errors import UserError

LEVEL = 0.05  # of the tests together
_SAMPLES = 100_000
_ROUNDING = 1e-12

RightByTask = Mapping[str, RightByExample]


@dataclass(frozen=True)
class MethodScore:
    """A method's tuned merge on the test questions. `note` says why there is no score.

    `tuned`: by option, the chosen value and all values. `right` and `right_at_default`: by task and question,
    whether the answer is right, of the tuned merge and of the one with the first listed value. `validation`: of each
    task, how many questions tuned it. `health`: by task, a warning about faulty answers. `save_command` makes the
    merge.
    """

    models: str
    method: str
    tuned: Mapping[str, tuple[float, Sequence[float]]] = field(default_factory=dict)
    right: RightByTask = field(default_factory=dict)
    right_at_default: RightByTask = field(default_factory=dict)
    validation: Mapping[str, int] = field(default_factory=dict)
    health: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    command: str = ""
    save_command: str = ""
    result_file: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.models, self.method

    @property
    def options(self) -> str:
        """The chosen values in words; empty if nothing was tuned."""
        return ", ".join(f"{SYMBOLS.get(name, name)} = {value:g}" for name, (value, _) in self.tuned.items())

    @property
    def at_edge(self) -> bool:
        """Whether the smallest or the largest of an option's values was chosen, though its range goes on."""
        declared = METHODS[self.method].options
        return any(
            declared[name].about.low < value == min(values) or declared[name].about.high > value == max(values)
            for name, (value, values) in self.tuned.items()
        )

    @property
    def mean(self) -> float | None:
        return mean_share(self.right)


def mean_share(right: RightByTask) -> float | None:
    """The mean over the tasks of the share of right answers; None without answers."""
    return mean(mean(of_task.values()) for of_task in right.values()) if right else None


@dataclass(frozen=True)
class Comparison:
    """A method's mean minus that of tuned task arithmetic, with the p-value before and after Holm's correction."""

    difference: Difference
    p: float
    corrected: float

    @property
    def verdict(self) -> str:
        """`better` or `worse` if the difference is significant, else empty."""
        if self.corrected > LEVEL:
            return ""
        return "better" if self.difference.mean > 0 else "worse"


def tested_examples(path: Path) -> dict[str, int]:
    """How many test questions the choice of a search has answered, by task; empty unless the search has ended."""
    with suppress(UserError), SearchStore(path) as store:  # no such file, or not a search's
        tested = latest_scores(store.results(), TEST)
        found = [{task: result.examples for task, result in tested.get(name, {}).items()} for name in _compared(store)]
        if found == [store.identity["test"]] * 2:
            return found[0]
    return {}


def _compared(store: SearchStore) -> tuple[str, str]:
    """The names of the chosen draw, the only one that is tested, and of the merge with the first listed value."""
    tested = latest_scores(store.results(), TEST)
    chosen = next((one.name for one in store.candidates() if one.kind == "draw" and one.name in tested), "")
    return chosen, PLAIN_CHOICE


def collect_methods(results: ResultsFolder) -> list[MethodScore]:
    """The score of every method that has a cell. If versions of this project have different cells of a method, the
    last one that ran counts."""
    last: dict[tuple, tuple[Path, CellState]] = {}
    for path, state in sorted(results.cells.items(), key=lambda item: _age(item[1])):
        if state.cell.is_search:
            last[state.tasks_name, state.cell.merge["merging_method_name"]] = path, state
    return [_score(results.folder, path, state) for path, state in last.values()]


def _age(state: CellState) -> tuple[bool, float]:
    return state.status == DONE, state.started or 0


def _score(results_dir: Path, path: Path, state: CellState) -> MethodScore:
    about = {"models": models_name(state.tasks_name), "method": merge_of_options(state.cell.merge)[1].method}
    files = [search_results(state.places(results_dir), state.cell, programs) for programs in (True, False)]
    file = next((file for file in files if tested_examples(file)), None)
    if file is None:
        return MethodScore(**about, note=why_missing(path, state))
    with SearchStore(file) as store:
        identity, names = store.identity, _compared(store)
        answers, at_default = ({task: store.answers(name, task, TEST) for task in identity["tasks"]} for name in names)
        parameters = next(one.parameters for one in store.candidates() if one.name == names[0])
    tuned = {
        name: (parameters.all_values[name], values["numbers"])
        for name, values in identity["space"]["values"].items()
        if len(values["numbers"]) > 1
    }
    warnings = {task: health_of_answers([*of_task.values()]).warning() for task, of_task in answers.items()}
    return MethodScore(
        **about,
        tuned=tuned,
        right=_right(answers),
        right_at_default=_right(at_default),
        validation=identity["validation"],
        health={task: warning for task, warning in warnings.items() if warning},
        command=state.commands[-1] if state.commands else "",
        save_command=save_command(identity, parameters),
        result_file=str(file),
    )


def _right(answers: Mapping[str, Mapping]) -> RightByTask:
    return {task: {example: answer.right for example, answer in by.items()} for task, by in answers.items()}


def compare_methods(scores: Sequence[MethodScore]) -> dict[tuple[str, str], Comparison]:
    """Each method's comparison with tuned task arithmetic of the same models, over the same questions, by its key.
    Holm's correction is over all of them. Methods without a score, or on other tasks than task arithmetic, have none.
    """
    pairs = {score.key: pair for score, pair in _pairs(scores)}
    differences = {key: paired_difference(pair, seed=0) for key, pair in pairs.items()}
    p_values = {key: randomisation_p(pairs[key]) for key, difference in differences.items() if difference is not None}
    corrected = holm(p_values)
    return {key: Comparison(differences[key], p, corrected[key]) for key, p in p_values.items()}


def _pairs(scores: Sequence[MethodScore]) -> Iterator[tuple[MethodScore, list[tuple[RightByExample, RightByExample]]]]:
    baselines = {score.models: score.right for score in scores if score.method == BASELINE}
    for score in scores:
        baseline = baselines.get(score.models, {})
        if score.method != BASELINE and score.right and score.right.keys() == baseline.keys():
            yield score, [(score.right[task], baseline[task]) for task in baseline]


def randomisation_p(pairs: Sequence[tuple[RightByExample, RightByExample]]) -> float:
    """The two-sided p-value of the mean difference over tasks, by the paired randomisation test (Fisher 1935).

    If the two are equally good, then each question that only one of them answers right could as well be the other's.
    The sums of n such signs are drawn as 2 Binomial(n, 1/2) − n, 100,000 times.
    """
    generator = np.random.default_rng(0)
    observed, drawn = 0.0, np.zeros(_SAMPLES)
    for first, second in pairs:
        signs = [first[example] - second[example] for example in first if example in second]
        number = np.count_nonzero(signs)
        observed += sum(signs) / len(signs)
        drawn += (2 * generator.binomial(number, 0.5, _SAMPLES) - number) / len(signs)
    return float((1 + np.count_nonzero(np.abs(drawn) >= abs(observed) - _ROUNDING)) / (1 + _SAMPLES))


def holm(p_values: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], float]:
    """The p-values corrected for their number (Holm 1979): at most 5% of such tables have one of at most 0.05 by
    chance."""
    corrected, largest = {}, 0.0
    for place, key in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[key]))
        corrected[key] = largest
    return corrected
