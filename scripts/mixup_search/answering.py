"""From a merge and questions to answers that are right or wrong: what one engine of a search does."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from inference_llms.engines.engine import CutOff
from inference_llms.task import Example
from inference_llms.tasks import TASKS
from scripts.mixup_search.candidate import Answer, Candidate, Part
from scripts.mixup_search.live_merges import LiveMerges

# Answers are given on at least so often, seconds apart, so that little of them is lost with the process.
_EVERY = 20.0


@dataclass(frozen=True)
class Job:
    """What a candidate has not answered yet of a part, by task."""

    candidate: Candidate
    part: Part
    examples: Mapping[str, Sequence[Example]]


@dataclass(frozen=True)
class Answered:
    """Some answers of a job, all to one task; `seconds`: what completing them took. `is_last`: the job has no more."""

    job: Job
    task: str
    answers: Sequence[Answer]
    seconds: float
    is_last: bool = False


def answer(job: Job, live: LiveMerges, role_of_task: Mapping[str, str]) -> Iterator[Answered]:
    """Complete and judge all that a job asks. Each task is asked with the tokenizer of its model."""
    names = list(job.examples)
    for name in names:
        examples = job.examples[name]
        title = f"{job.candidate.name}, {name}"
        completed: list[tuple[Example, str, float]] = []
        live.take(job.candidate.parameters, role_of_task[name])
        began, left = time.monotonic(), len(examples)
        for example, text in live.complete(TASKS[name], examples, title):
            completed.append((example, text, time.time()))
            left -= 1
            seconds = time.monotonic() - began
            if left == 0 or seconds > _EVERY:
                is_last = left == 0 and name == names[-1]
                yield Answered(job, name, _judge(name, completed), seconds, is_last)
                completed, began = [], time.monotonic()


def _judge(task: str, completed: Sequence[tuple[Example, str, float]]) -> list[Answer]:
    examples, texts, times = zip(*completed, strict=True)
    verdicts = TASKS[task].verdicts(examples, texts)
    is_readable = TASKS[task].is_readable
    return [
        Answer(
            example.id,
            str(text),
            bool(right),
            when,
            cut_off=isinstance(text, CutOff),
            readable=None if is_readable is None else is_readable(text, example.row),
        )
        for example, text, right, when in zip(examples, texts, verdicts, times, strict=True)
    ]
