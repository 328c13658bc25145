"""Which examples a run answered rightly, read again from its raw completions: what paired comparisons are made of."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from inference_llms import livebench_typos
from inference_llms.livebench import load_questions
from inference_llms.raw_generations import read_stored_line, whole_lines
from inference_llms.tasks import TASKS
from utils.errors import UserError


def rule_for_one_answer(task: str) -> Callable[[str, Mapping[str, Any]], bool] | None:
    """Whether a completion is right, by the example's row; None of a task that needs an evaluator or is not known."""
    if task == livebench_typos.NAME:
        return livebench_typos.is_right
    return TASKS[task].is_right if task in TASKS else None


def read_verdicts(task: str, raw_generations: Path, data_dir: Path | None) -> dict[int | str, bool]:
    """Whether each example that was answered was answered rightly, by id.

    Raises UserError where the data set is not there, or the completions are not."""
    is_right, rows = rule_for_one_answer(task), _rows_by_id(task, data_dir)
    if not raw_generations.is_file():
        raise UserError(f"{raw_generations}: no such file")
    verdicts = {}
    lines = raw_generations.read_bytes()[: whole_lines(raw_generations)].splitlines()
    for number, line in enumerate(lines, 1):
        stored = read_stored_line(line, f"{raw_generations} line {number}")
        if stored["id"] in rows:
            verdicts[stored["id"]] = is_right(stored["completion"], rows[stored["id"]])
    return verdicts


@cache
def _rows_by_id(task: str, data_dir: Path | None) -> dict[int | str, Mapping[str, Any]]:
    if task == livebench_typos.NAME:
        questions = load_questions(livebench_typos.CATEGORY, data_dir)
        return {row.fields["question_id"]: row.fields for row in questions if row.fields["task"] == task}
    return {example.id: example.row for example in TASKS[task].load_examples(data_dir)}


def answered_ids(path: Path) -> list[int | str]:
    """The ids of the examples in a file of raw completions, in the file's order."""
    return [json.loads(line)["id"] for line in path.read_bytes()[: whole_lines(path)].splitlines()]
