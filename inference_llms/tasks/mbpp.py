"""MBPP: small Python programs from one sentence and three tests; bigcode-evaluation-harness runs the tests."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from inference_llms.code_extraction import extract_code, number_of_statements
from inference_llms.data_sets import DataSet, Row, load_from_hub
from inference_llms.engines.engine import Sampling
from inference_llms.evaluators import bigcode_harness, evalplus
from inference_llms.task import Answers, Task
from utils.errors import UserError
from utils.output_places import OutputPlaces
from utils.whole_files import write_whole

PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n\n### Instruction:\nCreate a Python script for this problem:\n"
    "\n{text}\nTest examples:\n{tests}\n\n### Response:"
)
QUESTION = (
    "{text}\n\nAnswer with the whole program in a ```python block. It must pass these tests:\n\n```python\n{tests}\n```"
)
# The tests of task 493 are longer than the prompt may be, so only the call is shown.
LONG_TASK_ID = 493
LONG_TASK_TESTS = "calculate_polygons(startx, starty, endx, endy, radius)"
CODE_ENDS = ('if __name__ == "__main__":', "# Example usage", "# Test examples")


def check_row(row: Row) -> None:
    if not all(isinstance(test, str) for test in row.fields["test_list"]):
        raise UserError(f"{row.place}: the field 'test_list' must hold texts; fix the line")


def make_prompt(row: Mapping[str, Any]) -> str:
    tests = "\n".join(row["test_list"])
    if row["task_id"] == LONG_TASK_ID and "calculate_polygons(" in tests:
        tests = LONG_TASK_TESTS
    return PROMPT.format(text=row["text"].replace("    ", "\t"), tests=tests.replace("    ", "\t"))


def extract_program(completion: str) -> str:
    return extract_code(completion, drop_carriage_returns=False, fence_end="\n```", ends=CODE_ENDS)


def make_problem(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row in HumanEval's form: an empty prompt, and the row's tests."""
    # The evaluator calls check(entry_point) at the end. The tests come first, because some programs define a `check`.
    tests = [row.get("test_setup_code", ""), *row["test_list"], "def check(candidate): pass"]
    return {"task_id": f"mbpp/{row['task_id']}", "prompt": "", "entry_point": "len", "test": "\n".join(tests)}


def write_files(answers: Answers, places: OutputPlaces) -> tuple[Path, ...]:
    """Write the programs by position in the set, as the harness reads them. A task that was not run has none."""
    path = places.code("mbpp")
    programs = {
        example.id: [extract_program(completion)]
        for example, completion in zip(answers.examples, answers.completions, strict=True)
    }
    write_whole(path, json.dumps([programs.get(example.id, []) for example in answers.whole_set]) + "\n")
    return (path,)


TASK = Task(
    name="mbpp",
    title="MBPP",
    set_size=500,
    column=5,
    role="code",
    data_set=DataSet(
        files=("mbpp.test.jsonl",),
        fields={"task_id": int, "text": str, "test_list": list},
        published_as="google-research-datasets/mbpp",
        load_published=lambda: load_from_hub("google-research-datasets/mbpp", "full", split="test"),
        id_field="task_id",
        check_row=check_row,
    ),
    make_prompt=make_prompt,
    make_question=lambda row: QUESTION.format(text=row["text"], tests="\n".join(row["test_list"])),
    sampling=Sampling(max_tokens=2048),
    is_readable=lambda completion, row: number_of_statements(extract_program(completion)) > 0,
    program=extract_program,
    problem=make_problem,
    write_files=write_files,
    evaluator=bigcode_harness.EVALUATOR,
    evalplus=partial(evalplus.mbpp_command, extract=extract_program),
)
