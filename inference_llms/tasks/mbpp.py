"""MBPP: small Python programs from one sentence and three tests; bigcode-evaluation-harness runs the tests."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference_llms.data_sets import DataSet, check_unique, load_from_hub, load_rows
from inference_llms.engines.engine import Sampling
from inference_llms.tasks.code_extraction import extract_code, number_of_statements
from inference_llms.tasks.task import Answers, Example, Outcome, Task
from utils.errors import UserError
from utils.output_places import OutputPlaces
from utils.whole_files import write_whole

PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n\n### Instruction:\nCreate a Python script for this problem:\n"
    "\n{text}\nTest examples:\n{tests}\n\n### Response:"
)
# The tests of task 493 are longer than the prompt may be, so only the call is shown.
LONG_TASK_ID = 493
LONG_TASK_TESTS = "calculate_polygons(startx, starty, endx, endy, radius)"
SAMPLING = Sampling(max_tokens=2048)
DATA_SET = DataSet(
    files=("mbpp.test.jsonl",),
    fields={"task_id": int, "text": str, "test_list": list},
    published_as="google-research-datasets/mbpp",
    load_published=lambda: load_from_hub("google-research-datasets/mbpp", "full", split="test"),
)
CODE_ENDS = ('if __name__ == "__main__":', "# Example usage", "# Test examples")


def extract_program(completion: str) -> str:
    return extract_code(completion, drop_carriage_returns=False, fence_end="\n```", ends=CODE_ENDS)


def make_prompt(row: dict[str, Any]) -> str:
    tests = "\n".join(row["test_list"])
    if row["task_id"] == LONG_TASK_ID and "calculate_polygons(" in tests:
        tests = LONG_TASK_TESTS
    return PROMPT.format(text=row["text"].replace("    ", "\t"), tests=tests.replace("    ", "\t"))


def load_examples(data_dir: Path | None) -> list[Example]:
    """The tasks, sorted by task_id as a number."""
    rows = load_rows(DATA_SET, data_dir)
    check_unique(rows, "task_id")
    for row in rows:
        if not all(isinstance(test, str) for test in row.fields["test_list"]):
            raise UserError(f"{row.place}: the field 'test_list' must hold texts; mend the line")
    rows.sort(key=lambda row: row.fields["task_id"])
    return [Example(id=row.fields["task_id"], prompt=make_prompt(row.fields), row=row.fields) for row in rows]


def is_readable(completion: str, row: Mapping[str, Any]) -> bool:
    return number_of_statements(extract_program(completion)) > 0


def finish(answers: Answers, places: OutputPlaces) -> Outcome:
    programs = {
        example.id: [extract_program(completion)]
        for example, completion in zip(answers.examples, answers.completions, strict=True)
    }
    path = places.code("mbpp")
    # The harness goes by position in the set: a task that was not run keeps its place.
    write_whole(path, json.dumps([programs.get(example.id, []) for example in answers.whole_set]) + "\n")
    command = ["accelerate", "launch", "./bigcode-evaluation-harness/main.py", "--tasks", "mbpp"]
    command += ["--allow_code_execution", "--load_generations_path", str(path.absolute())]
    return Outcome(files=(path,), evaluator_command=shlex.join(command))


TASK = Task("mbpp", SAMPLING, load_examples, finish, is_readable=is_readable, set_files=DATA_SET.files)
