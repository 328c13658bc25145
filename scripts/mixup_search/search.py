"""The work of a search: propose merges, score them on the validation part, test what was chosen."""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from inference_llms.task import Example
from scripts.mixup_search.answering import Job
from scripts.mixup_search.candidate import TEST, VALIDATION, Candidate, Part, Result, health_of_answers
from scripts.mixup_search.choice import Scores, best, gains, mean_gain
from scripts.mixup_search.engines import Engines
from scripts.mixup_search.proposals import Proposals
from scripts.mixup_search.search_space import alone, references
from scripts.mixup_search.splits import TaskParts
from scripts.mixup_search.store import SearchStore

log = logging.getLogger(__name__)

_LOOK_AGAIN = 1.0  # seconds, while another process has the rest


@dataclass(frozen=True)
class Search:
    """What is searched and on which examples. `rungs`: how many validation examples all draws get, then the better half
    of them, then the better half of those; the last rung is the whole part."""

    proposals: Proposals
    roles: Sequence[str]
    parts: Mapping[str, TaskParts]
    role_of_task: Mapping[str, str]
    rungs: Sequence[int]

    def run(self, store: SearchStore, engines: Engines) -> None:
        """Ask all that `store` does not hold yet. Several processes may do so at once."""
        with store.renewing():
            self._run(store, engines)

    def _run(self, store: SearchStore, engines: Engines) -> None:
        compared = references(self.proposals.space, self.roles)
        for candidate in compared:
            store.add_candidate(candidate)
        for size in self.rungs:
            self._evaluate(compared, VALIDATION, size, store, engines)
        if self.proposals.draw_by == "optimise":
            self._draw_one_after_the_other(store, engines)
        else:
            self._draw_all(store, engines)
        draws = {c.name: c for c in store.candidates() if c.kind == "draw"}
        chosen = best(self._gains(store, self.rungs[-1]), list(draws))
        tested = [candidate for candidate in compared if candidate.kind in ("equal", "plain")]
        longest = max(len(parts.test) for parts in self.parts.values())
        self._evaluate([draws[chosen], *tested], TEST, longest, store, engines)

    def _gains(self, store: SearchStore, size: int) -> dict[str, dict[str, float]]:
        """By task, of every candidate that has answered `size` validation examples of each."""
        scores: Scores = {}
        for result in self._results(store, VALIDATION, size):
            scores.setdefault(result.candidate, {})[result.task] = result
        return gains(scores, {task: alone(role) for task, role in self.role_of_task.items()})

    def _draw_all(self, store: SearchStore, engines: Engines) -> None:
        draws = [self.proposals.propose(number) for number in range(self.proposals.total)]
        for draw in draws:
            store.add_candidate(draw)
        for size in self.rungs:
            self._evaluate(draws, VALIDATION, size, store, engines)
            if size != self.rungs[-1]:
                draws = self._better_half(draws, size, store)

    def _better_half(self, draws: Sequence[Candidate], size: int, store: SearchStore) -> list[Candidate]:
        """In the order in which they were drawn; of equal ones those drawn first."""
        found = self._gains(store, size)
        best_first = sorted(draws, key=lambda draw: -mean_gain(found[draw.name]))
        better = {draw.name for draw in best_first[: -(-len(draws) // 2)]}
        return [draw for draw in draws if draw.name in better]

    def _draw_one_after_the_other(self, store: SearchStore, engines: Engines) -> None:
        """Or as many at once as there are engines."""
        for first in range(0, self.proposals.total, engines.number):
            found = self._gains(store, self.rungs[-1])
            stored = {candidate.name: candidate for candidate in store.candidates()}
            known = [(candidate, mean_gain(found[name])) for name, candidate in stored.items() if name in found]
            names = []
            for number in range(first, min(first + engines.number, self.proposals.total)):
                names.append(f"draw {number}")
                if names[-1] not in stored:
                    store.add_candidate(self.proposals.propose(number, known))
            stored = {candidate.name: candidate for candidate in store.candidates()}
            self._evaluate([stored[name] for name in names], VALIDATION, self.rungs[-1], store, engines)

    def _evaluate(
        self, candidates: Sequence[Candidate], part: Part, size: int, store: SearchStore, engines: Engines
    ) -> None:
        """Have all candidates answer the first `size` examples of each task, and store how many are right. What another
        process has begun is left to it, and waited for."""
        waiting, said = list(candidates), False
        while waiting:
            seconds: Counter[tuple[str, str]] = Counter()
            for answered in engines.run(self._jobs(waiting, part, size, store)):
                name = answered.job.candidate.name
                store.add_answers(name, answered.task, part, answered.answers)
                seconds[name, answered.task] += answered.seconds
                if answered.is_last:
                    self._add_results(answered.job.candidate, part, size, store, seconds)
                    store.release(name, part)
            waiting = [candidate for candidate in waiting if not self._has_results(candidate, part, size, store)]
            if waiting and not seconds:
                if not said:
                    log.info("another process works on %s", ", ".join(candidate.name for candidate in waiting))
                    said = True
                time.sleep(_LOOK_AGAIN)

    def _jobs(self, candidates: Sequence[Candidate], part: Part, size: int, store: SearchStore) -> Iterator[Job]:
        """What there is to ask of the candidates that no other process has, each claimed as its turn comes."""
        for candidate in candidates:
            if self._has_results(candidate, part, size, store) or not store.claim(candidate.name, part):
                continue
            missing = {}
            for task in self.parts:
                answered = store.answers(candidate.name, task, part)
                left = [example for example in self._examples(task, part, size) if example.id not in answered]
                if left:
                    missing[task] = left
            if missing:
                yield Job(candidate, part, missing)
            else:  # killed after the last answer
                self._add_results(candidate, part, size, store, {})
                store.release(candidate.name, part)

    def _examples(self, task: str, part: Part, size: int) -> Sequence[Example]:
        parts = self.parts[task]
        return (parts.validation if part == VALIDATION else parts.test)[:size]

    def _add_results(
        self,
        candidate: Candidate,
        part: Part,
        size: int,
        store: SearchStore,
        seconds: Mapping[tuple[str, str], float],
    ) -> None:
        scores = []
        for task in self.parts:
            answered = store.answers(candidate.name, task, part)
            answers = [answered[example.id] for example in self._examples(task, part, size)]
            times = [answer.time for answer in answers]
            spent = seconds.get((candidate.name, task), max(times) - min(times))
            right = sum(answer.right for answer in answers)
            result = Result(candidate.name, task, part, len(answers), right, spent, time.time())
            store.add_result(result)
            warning = health_of_answers(answers).warning()
            scores.append(f"{task} {result.score:.3f}" + (f" (check the completions: {warning})" if warning else ""))
        mixup = candidate.parameters.mixup
        ratios = "" if mixup is None else f" ({', '.join(f'{weight:.4f}' for weight in mixup.weights)})"
        log.info("%s%s: %s on %s, %d examples each", candidate.name, ratios, ", ".join(scores), part, len(answers))

    def _has_results(self, candidate: Candidate, part: Part, size: int, store: SearchStore) -> bool:
        stored = {result.task for result in self._results(store, part, size) if result.candidate == candidate.name}
        return stored == set(self.parts)

    def _results(self, store: SearchStore, part: Part, size: int) -> list[Result]:
        """The results on so many examples of each task, or on all of them where a task has fewer."""
        lengths = {task: len(self._examples(task, part, size)) for task in self.parts}
        return [r for r in store.results() if r.part == part and r.examples == lengths.get(r.task)]
