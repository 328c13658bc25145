"""LiveBench, coding: write or complete a program; LiveBench runs it on its tests."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from inference_llms.engines.engine import Sampling
from inference_llms.tasks.livebench import (
    check_own_answers,
    first_turns,
    judge_command,
    load_questions,
    releases_of,
    write_answers,
    write_questions,
)
from inference_llms.tasks.task import Answers, Example, Outcome, Task
from utils.output_places import OutputPlaces

NAME = "coding"
SAMPLING = Sampling(max_tokens=2048)


def load_examples(release: str | None, data_dir: Path | None) -> list[Example]:
    return first_turns(load_questions(NAME, data_dir, release))


def is_readable(completion: str, row: Mapping[str, Any]) -> bool:
    """Whether there is a program for LiveBench, which reads what is between two lines with ```."""
    return sum("```" in line for line in completion.split("\n")) >= 2


def finish(release: str | None, model_id: str, answers: Answers, places: OutputPlaces) -> Outcome:
    files = write_answers(answers, answers.completions, places, NAME, NAME, model_id)
    questions = [example.row for example in answers.examples]
    write_questions(files, questions)
    return Outcome(files=files, evaluator_command=judge_command(NAME, files, releases_of(questions, release)))


def task(release: str | None, model_id: str) -> Task:
    return Task(
        NAME,
        SAMPLING,
        partial(load_examples, release),
        partial(finish, release, model_id),
        partial(check_own_answers, NAME, NAME, model_id),
        is_readable=is_readable,
    )
