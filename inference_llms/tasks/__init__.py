"""The tasks there are. A new one is a file of its own and a line here."""

from collections.abc import Sequence

from inference_llms.tasks import MATH, alpaca_eval, gsm8k, human_eval, mbpp
from inference_llms.tasks.task import Task

TASKS: dict[str, Task] = {
    task.name: task for task in (alpaca_eval.TASK, gsm8k.TASK, MATH.TASK, human_eval.TASK, mbpp.TASK)
}

# The tasks that each fine-tune of the paper was made for.
TASKS_OF_ROLE = {"instruct": ("alpaca_eval",), "math": ("gsm8k", "MATH"), "code": ("human_eval", "mbpp")}


def role_of_task(task: str, roles: Sequence[str]) -> str:
    return next((role for role in roles if task in TASKS_OF_ROLE[role]), roles[0])
