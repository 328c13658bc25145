"""The tasks there are. A new one is a file of its own and a line here."""

from inference_llms import gsm8k
from inference_llms.task import Task

TASKS: dict[str, Task] = {module.TASK.name: module.TASK for module in (gsm8k,)}
