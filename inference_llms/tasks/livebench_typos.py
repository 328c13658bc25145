"""LiveBench, typos (of the category language): mend the misspellings of a text; scored here."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from inference_llms.engines.engine import Sampling
from inference_llms.tasks.livebench import check_own_answers, load_questions, write_answers
from inference_llms.tasks.task import Answers, Example, Outcome, Task, share
from utils.errors import UserError
from utils.output_places import OutputPlaces

NAME = "typos"
CATEGORY = "language"
PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Text with errors:\n{text}\n\n### Response: the corrected paragraph is:"
)
SAMPLING = Sampling(max_tokens=2048, stop=("The answer is:",))


def make_prompt(turn: str) -> str:
    """A question's instruction, which ends at its first blank line, and its text in sections of their own."""
    instruction, _, text = turn.partition("\n\n")
    return PROMPT.format(instruction=instruction, text=text)


def is_correct(completion: str, ground_truth: str) -> bool:
    """Whether the ground truth occurs in the last line that is not empty."""
    lines = [line for line in completion.strip().split("\n") if line]
    return bool(lines) and ground_truth in lines[-1]


def is_right(completion: str, row: Mapping[str, Any]) -> bool:
    return is_correct(completion, row["ground_truth"])


def is_correct_for_livebench(completion: str, ground_truth: str) -> bool:
    """LiveBench's own rule: whether the ground truth occurs in what stands in the last <solution>, or between dashes
    on a line, or else in all of the completion; its lines joined by a space."""
    solutions = re.findall(r"<solution>(.*?)</solution>", completion)
    if solutions:
        text = solutions[-1]
    else:
        text = completion.replace("<solution>", "").replace("</solution>", "")
        between_dashes = re.search(r".* --- (.*?) --- .*", text)
        text = between_dashes.group(1) if between_dashes else text
    return ground_truth in " ".join(line for line in text.strip().split("\n") if line)


def load_examples(release: str | None, data_dir: Path | None) -> list[Example]:
    """The category's rows of this task alone."""
    rows = [row for row in load_questions(CATEGORY, data_dir, release) if row.fields["task"] == NAME]
    if not rows:
        raise UserError(f"no question of the category {CATEGORY} has the task {NAME}; give the whole category's file")
    for row in rows:
        truth = row.fields.get("ground_truth")
        if not isinstance(truth, str) or not truth.strip():
            raise UserError(f"{row.place}: the field 'ground_truth' must be text; mend or remove the line")
    return [Example(row.fields["question_id"], make_prompt(row.fields["turns"][0]), row.fields) for row in rows]


def finish(model_id: str, answers: Answers, places: OutputPlaces) -> Outcome:
    judged = [
        (completion, example.row["ground_truth"])
        for example, completion in zip(answers.examples, answers.completions, strict=True)
    ]
    return Outcome(
        metrics={
            "accuracy": share([is_correct(*pair) for pair in judged]),
            "livebench_accuracy": share([is_correct_for_livebench(*pair) for pair in judged]),
        },
        files=write_answers(answers, answers.completions, places, NAME, CATEGORY, model_id),
    )


def task(release: str | None, model_id: str) -> Task:
    return Task(
        NAME,
        SAMPLING,
        partial(load_examples, release),
        partial(finish, model_id),
        partial(check_own_answers, NAME, CATEGORY, model_id),
        is_right,
    )
