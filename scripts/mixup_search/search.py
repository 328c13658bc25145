"""The work of a search: propose merges, score them on the validation part, test what was chosen."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from inference_llms.task import Example
from scripts.mixup_search.answering import Job
from scripts.mixup_search.candidate import TEST, VALIDATION, Candidate, Part, Result
from scripts.mixup_search.choice import mean_gains
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
        compared = references(self.proposals.space, self.roles)
        for candidate in compared:
            store.add_candidate(candidate)
        self._evaluate(compared, VALIDATION, self.rungs[-1], store, engines)
        if self.proposals.draw_by == "optimise":
            self._draw_one_after_the_other(store, engines)
        else:
            self._draw_all(store, engines)
        tested = {candidate.name: candidate for candidate in compared if candidate.kind in ("equal", "plain")}
        gains = self.gains(store, self.rungs[-1])
        best = max((c for c in store.candidates() if c.kind == "draw" and c.name in gains), key=lambda c: gains[c.name])
        tested[best.name] = best
        longest = max(len(parts.test) for parts in self.parts.values())
        self._evaluate(list(tested.values()), TEST, longest, store, engines)

    def gains(self, store: SearchStore, size: int) -> dict[str, float]:
        """The mean gain on the validation part of the candidates that were scored on `size` examples of each task."""
        finetunes = {task: alone(role) for task, role in self.role_of_task.items()}
        return mean_gains(store.results(), finetunes, size)

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
        gains = self._gains_at(draws, size, store)
        best = sorted(draws, key=lambda draw: -gains[draw.name])[: -(-len(draws) // 2)]
        return [draw for draw in draws if draw in best]

    def _draw_one_after_the_other(self, store: SearchStore, engines: Engines) -> None:
        """Or as many at once as there are engines."""
        for first in range(0, self.proposals.total, engines.number):
            gains = self.gains(store, self.rungs[-1])
            known = {candidate.name: candidate for candidate in store.candidates()}
            numbers = range(first, min(first + engines.number, self.proposals.total))
            before = [(c, gains[c.name]) for c in known.values() if c.name in gains]
            draws = [known.get(f"draw {number}") or self.proposals.propose(number, before) for number in numbers]
            for draw in draws:
                store.add_candidate(draw)
            stored = {candidate.name: candidate for candidate in store.candidates()}
            self._evaluate([stored[draw.name] for draw in draws], VALIDATION, self.rungs[-1], store, engines)
