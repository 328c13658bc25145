"""Which examples a run answered rightly, read again from its raw completions: what paired comparisons are made of."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from inference_llms import MATH, gsm8k, livebench_typos
from inference_llms.livebench import load_questions
from inference_llms.math_normalisation import is_equivalent, last_boxed
from inference_llms.raw_generations import read_stored_line, whole_lines
from utils.errors import UserError


def _is_right_in_math(completion: str, row: Mapping[str, Any]) -> bool:
    return is_equivalent(MATH.extract_answer(completion), last_boxed(row["output"]))


RIGHT: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "gsm8k": lambda completion, row: gsm8k.extract_number(completion) == row["gold"],
    "MATH": _is_right_in_math,
    "typos": lambda completion, row: livebench_typos.is_correct(completion, row["ground_truth"]),
}


def read_verdicts(task: str, raw_generations: Path, data_dir: Path | None) -> dict[int | str, bool]:
    """Whether each example that was answered was answered rightly, by id.

    Raises UserError where the data set is not there, or the completions are not."""
    rows = _rows_by_id(task, data_dir)
    if not raw_generations.is_file():
        raise UserError(f"{raw_generations}: no such file")
    verdicts = {}
    lines = raw_generations.read_bytes()[: whole_lines(raw_generations)].splitlines()
    for number, line in enumerate(lines, 1):
        stored = read_stored_line(line, f"{raw_generations} line {number}")
        if stored["id"] in rows:
            verdicts[stored["id"]] = RIGHT[task](stored["completion"], rows[stored["id"]])
    return verdicts


@cache
def _rows_by_id(task: str, data_dir: Path | None) -> dict[int | str, Mapping[str, Any]]:
    if task == livebench_typos.NAME:
        questions = load_questions(livebench_typos.CATEGORY, data_dir)
        return {row.fields["question_id"]: row.fields for row in questions if row.fields["task"] == task}
    module = {"gsm8k": gsm8k, "MATH": MATH}[task]
    return {example.id: example.row for example in module.TASK.load_examples(data_dir)}


def answered_ids(path: Path) -> list[int | str]:
    """The ids of the examples in a file of raw completions, in the file's order."""
    return [json.loads(line)["id"] for line in path.read_bytes()[: whole_lines(path)].splitlines()]
