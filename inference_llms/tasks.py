"""The tasks there are. A new one is a file of its own and a line here."""

from inference_llms import MATH, alpaca_eval, gsm8k, human_eval, mbpp
from inference_llms.task import Task

TASKS: dict[str, Task] = {
    task.name: task for task in (alpaca_eval.TASK, gsm8k.TASK, MATH.TASK, human_eval.TASK, mbpp.TASK)
}

# The tasks that each fine-tune of the paper was made for.
TASKS_OF_ROLE = {"instruct": ("alpaca_eval",), "math": ("gsm8k", "MATH"), "code": ("human_eval", "mbpp")}
