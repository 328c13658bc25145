"""The loop of a search: propose merges, score them on the validation part, test the choice."""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from inference_llms.task import Example
from scripts.mixup_search.choice import Scores, best, gains, has_all, mean_gain, scores_over
from scripts.mixup_search.live_merges import Job, LiveMerges
from scripts.mixup_search.ray_engines import RayEngines
from scripts.mixup_search.search_space import Candidate, Proposals, references
from scripts.mixup_search.splits import TaskParts
from scripts.mixup_search.store import TEST, VALIDATION, Part, Result, SearchStore, health_of_answers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Search:
    """The merges to search, the examples of each task to score them on, the results file, and the engines."""

    proposals: Proposals
    parts: Mapping[str, TaskParts]
    store: SearchStore
    engines: LiveMerges | RayEngines

    @property
    def rungs(self) -> list[int]:
        """The numbers of validation examples: all draws get the first, the better half the next, and so on up to the
        whole part."""
        return self.store.identity["rungs"]

    def run(self) -> None:
        """Run everything that the results file lacks."""
        compared = references(self.proposals.space, self.store.identity["roles"])
        for candidate in compared:
            self.store.add_candidate(candidate)
        for size in self.rungs:
            self._evaluate(compared, VALIDATION, size)
        if self.proposals.draw_by == "optimise":
            self._draw_by_scores()
        else:
            self._draw_all()
        draws = {draw.name: draw for draw in self.store.candidates() if draw.kind == "draw"}
        chosen = best(self._gains(self.rungs[-1]), list(draws))
        tested = [candidate for candidate in compared if candidate.kind in ("equal", "plain")]
        longest = max(len(parts.test) for parts in self.parts.values())
        self._evaluate([draws[chosen], *tested], TEST, longest)

    def _draw_all(self) -> None:
        draws = [self.proposals.propose(number) for number in range(self.proposals.total)]
        for draw in draws:
            self.store.add_candidate(draw)
        for size in self.rungs:
            self._evaluate(draws, VALIDATION, size)
            if size != self.rungs[-1]:
                draws = self._better_half(draws, size)

    def _better_half(self, draws: Sequence[Candidate], size: int) -> list[Candidate]:
        """The better half by mean gain, in the order of the draws; ties go to earlier draws."""
        scored = self._gains(size)
        best_first = sorted(draws, key=lambda draw: -mean_gain(scored[draw.name]))
        better = {draw.name for draw in best_first[: -(-len(draws) // 2)]}
        return [draw for draw in draws if draw.name in better]

    def _draw_by_scores(self) -> None:
        """One draw at a time, or one for each engine."""
        for first in range(0, self.proposals.total, self.engines.number):
            gained, stored = self._gains(self.rungs[-1]), self.store.candidates()
            scored = [(one, mean_gain(gained[one.name])) for one in stored if one.name in gained]
            numbers = range(first, min(first + self.engines.number, self.proposals.total))
            for number in numbers:
                if f"draw {number}" not in {one.name for one in stored}:
                    self.store.add_candidate(self.proposals.propose(number, scored))
            names = [f"draw {number}" for number in numbers]
            self._evaluate([one for one in self.store.candidates() if one.name in names], VALIDATION, self.rungs[-1])

    def _gains(self, size: int) -> dict[str, dict[str, float]]:
        """The gains, by task, of every candidate that has answered `size` validation examples of each task."""
        return gains(self._scores(VALIDATION, size), self.store.identity["role_of_task"])

    def _scores(self, part: Part, size: int) -> Scores:
        """The results on this many examples of each task, or on all of them if a task has fewer."""
        lengths = {task: len(self._examples(task, part, size)) for task in self.parts}
        return scores_over(self.store.results(), part, lengths)

    def _evaluate(self, candidates: Sequence[Candidate], part: Part, size: int) -> None:
        """Have all candidates answer the first `size` examples of each task, and store how many are right."""
        seconds: Counter[tuple[str, str]] = Counter()
        for answered in self.engines.run(self._jobs(candidates, part, size)):
            candidate = answered.candidate
            if answered.start_seconds:
                self.store.add_start(answered.start_seconds)
            self.store.add_answers(candidate.name, answered.task, part, answered.answers)
            seconds[candidate.name, answered.task] += answered.seconds
            if answered.is_last:
                self._add_results(candidate, part, size, seconds)

    def _jobs(self, candidates: Sequence[Candidate], part: Part, size: int) -> Iterator[Job]:
        """The missing answers of each candidate."""
        scores = self._scores(part, size)
        for candidate in candidates:
            if has_all(scores, candidate, self.parts):
                continue
            missing = {}
            for task in self.parts:
                answered = self.store.answers(candidate.name, task, part)
                left = [example for example in self._examples(task, part, size) if example.id not in answered]
                if left:
                    missing[task] = left
            if missing:
                yield Job(candidate, missing)
            else:  # killed after the last answer
                self._add_results(candidate, part, size, {})

    def _add_results(
        self, candidate: Candidate, part: Part, size: int, seconds: Mapping[tuple[str, str], float]
    ) -> None:
        scores = []
        for task in self.parts:
            answered = self.store.answers(candidate.name, task, part)
            answers = [answered[example.id] for example in self._examples(task, part, size)]
            times = [answer.time for answer in answers]
            spent = seconds.get((candidate.name, task), max(times) - min(times))
            right = sum(answer.right for answer in answers)
            result = Result(candidate.name, task, part, len(answers), right, spent, time.time())
            self.store.add_result(result)
            warning = health_of_answers(answers).warning()
            scores.append(f"{task} {result.score:.3f}" + (f" (check the completions: {warning})" if warning else ""))
        ratios = f" ({', '.join(f'{ratio:.4f}' for ratio in candidate.ratios)})" if candidate.ratios else ""
        log.info("%s%s: %s on %s, %d examples each", candidate.name, ratios, ", ".join(scores), part, len(answers))

    def _examples(self, task: str, part: Part, size: int) -> Sequence[Example]:
        parts = self.parts[task]
        return (parts.validation if part == VALIDATION else parts.test)[:size]
