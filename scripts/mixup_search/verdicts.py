"""Checks before a search that its tasks' completions can be judged: by a rule, or by running programs."""

from collections.abc import Mapping, Sequence

from inference_llms.evaluators.guard import check_guard
from inference_llms.task import Example
from inference_llms.tasks import TASKS
from utils.errors import UserError


def check_verdicts(examples: Mapping[str, Sequence[Example]], allow_code_execution: bool) -> None:
    """Raise UserError if a task's programs may not or cannot be run, or if its set has no answers to compare with."""
    if allow_code_execution and any(TASKS[name].program is not None for name in examples):
        check_guard()
    for name in examples:
        task = TASKS[name]
        if task.program is not None and not allow_code_execution:
            raise UserError(
                f"--tasks {name}: a search runs the programs that the models write; allow it with "
                "--allow_code_execution, or leave the task out"
            )
        if task.program is None:
            if task.is_right is None:
                raise UserError(f"--tasks {name}: no rule says which answers are right; give its Task an is_right")
            task.verdicts(examples[name], [""] * len(examples[name]))  # raises for a set without answers
