"""Who answers the jobs of a search: an engine in this process, or one in each of a Ray cluster's actors."""

from collections.abc import Iterator, Mapping
from typing import Protocol

from scripts.mixup_search.answering import Answered, Job, answer
from scripts.mixup_search.live_merges import EngineOptions, LiveMerges, Models


class Engines(Protocol):
    number: int

    def run(self, jobs: Iterator[Job]) -> Iterator[Answered]:
        """Answer jobs, taken one by one as there is an engine for them."""
        ...

    def close(self) -> None: ...


class OwnEngine:
    """One engine, in this process."""

    number = 1

    def __init__(self, models: Models, options: EngineOptions, role_of_task: Mapping[str, str]):
        self.live = LiveMerges(models, options)
        self._role_of_task = role_of_task

    def run(self, jobs: Iterator[Job]) -> Iterator[Answered]:
        for job in jobs:
            yield from answer(job, self.live, self._role_of_task)

    def close(self) -> None:
        self.live.close()
