"""The results file of a search whose answers are right with a probability that depends on the ratios."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from model_merging_methods.merge_parameters import MergeParameters, mask_of, parameters_of
from scripts.mixup_search.search_space import Candidate, Proposals, SearchSpace, Values, references
from scripts.mixup_search.store import TEST, VALIDATION, Answer, Part, Result, SearchStore

TWO_TASKS = {"gsm8k": "math", "alpaca_eval": "instruct"}
IDENTITY = {
    "roles": ["instruct", "math"],
    "tasks": list(TWO_TASKS),
    "models": {"pretrained": "zoo/base model", "instruct": None, "math": "zoo/math", "code": None},
    "role_of_task": TWO_TASKS,
    "draw_by": "mixup",
    "num_draws": 10,
    "seed": 0,
    "rungs": [10, 40],
    "validation": dict.fromkeys(TWO_TASKS, 40),
    "test": dict.fromkeys(TWO_TASKS, 60),
    "split": "40 examples of <each> task's training split, drawn with seed 0, validate.",
    "backend": "transformers",
    "space": SearchSpace(
        2, parameters_of("ties_merging", mask=mask_of()), Values((0.5,)), {"scaling_coefficient": Values((0.7, 1.0))}
    ).to_fields(),
}


def space_of(base: MergeParameters, number_of_models: int = 2, **options: Values) -> SearchSpace:
    """A space that varies these options; a single value replaces that of `base`."""
    alpha = options.pop("alpha", Values((0.5,)))
    known = {name: values.plain_choice for name, values in options.items() if name in base.all_values}
    several = {name: values for name, values in options.items() if len(values.numbers) > 1}
    return SearchSpace(number_of_models, base.with_options(**known), alpha, several)


class SmallSearch:
    """A search whose candidates are scored when a test calls `score`."""

    def __init__(
        self,
        path: Path,
        base: MergeParameters,
        role_of_task: Mapping[str, str] = TWO_TASKS,
        roles: Sequence[str] = ("instruct", "math"),
        draw_by: str = "mixup",
        num_draws: int = 10,
        **options: Values,
    ):
        self.roles, self.tasks, self.role_of_task = list(roles), list(role_of_task), role_of_task
        space = space_of(base, len(roles), **options)
        proposals = Proposals(space, draw_by, num_draws, seed=0)
        identity = {
            **IDENTITY,
            "space": space.to_fields(),
            "roles": self.roles,
            "tasks": self.tasks,
            "role_of_task": dict(role_of_task),
            **proposals.identity(),
            "validation": dict.fromkeys(self.tasks, 40),
            "test": dict.fromkeys(self.tasks, 60),
        }
        self.store = SearchStore(path, identity)
        self.references = references(space, roles)
        self.draws = [proposals.propose(number) for number in range(proposals.total)]

    def score(self, candidate: Candidate, examples: int, part: Part = VALIDATION, tasks: Sequence[str] = ()) -> None:
        """Store a candidate with its answers to the first examples of a part."""
        self.store.add_candidate(candidate)
        for task in tasks or self.tasks:
            ratio = (candidate.ratios or [1.0] * len(self.roles))[self.roles.index(self.role_of_task[task])]
            luck = np.random.default_rng([len(task), len(part)]).random(60)  # equally hard for all candidates
            right = [bool(value) for value in luck[:examples] < 0.2 + 0.6 * ratio**0.5]
            answers = [Answer(i, f"text {i}", value, 0.0) for i, value in enumerate(right)]
            self.store.add_answers(candidate.name, task, part, answers)
            self.store.add_result(Result(candidate.name, task, part, examples, sum(right), 1.0, 0.0))

    def validate(self) -> "SmallSearch":
        """Score all candidates on ten examples, and the references and the first half of the draws on all."""
        for candidate in (*self.references, *self.draws):
            self.score(candidate, 10)
        for candidate in (*self.references, *self.draws[: len(self.draws) // 2]):
            self.score(candidate, 40)
        return self

    def test(self, *candidates: Candidate) -> "SmallSearch":
        for candidate in candidates:
            self.score(candidate, 60, TEST)
        return self
