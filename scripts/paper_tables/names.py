"""What models, tasks and methods are called in the paper's tables."""

from inference_llms.tasks import TASKS

ROLES = {"instruct": "LM", "math": "Math", "code": "Code"}
# By task: the data set's name and test size in the paper (LiveBench: release 2024-11-25).
DATA_SETS = {name: (task.title, task.set_size) for name, task in TASKS.items()}
DATA_SETS |= {"sst2": ("SST-2", 872), "cola": ("CoLA", 516)}
METHODS = {"average_merging": "average", "task_arithmetic": "task arithmetic", "ties_merging": "TIES"}
PAPER_ALPHA = 0.5


def models_name(tasks_name: str) -> str:
    """`instruct_math` as LM & Math."""
    return " & ".join(ROLES.get(role, role) for role in tasks_name.split("_"))
