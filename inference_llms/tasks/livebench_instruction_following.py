"""LiveBench, instruction_following: rewrite a newspaper's text and keep to several constraints; LiveBench judges."""

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

NAME = "instruction_following"
SAMPLING = Sampling(max_tokens=2048)


def answer(completion: str) -> str:
    """A completion as it is judged: without answer marks, and without punctuation, newlines and white space around
    it, taken off in this order and once each."""
    return completion.replace("The answer is:", "").strip(".,!?;: ").strip("\n").strip()


def is_readable(completion: str, row: Mapping[str, Any]) -> bool:
    return answer(completion) != ""


def load_examples(release: str | None, data_dir: Path | None) -> list[Example]:
    return first_turns(load_questions(NAME, data_dir, release))


def finish(release: str | None, model_id: str, answers: Answers, places: OutputPlaces) -> Outcome:
    texts = [answer(completion) for completion in answers.completions]
    files = write_answers(answers, texts, places, NAME, NAME, model_id)
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
