"""The tasks, one file each, found by name: `TASK` of every module here."""

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path

from inference_llms.livebench_files import LiveBenchSet
from inference_llms.task import Task
from utils.errors import UserError
from utils.model_folders import FINETUNED_MODELS

_FOUND = [importlib.import_module(f"{__name__}.{module.name}").TASK for module in pkgutil.iter_modules(__path__)]

# In the order of the paper's tables; other tasks follow by name.
TASKS: dict[str, Task] = {task.name: task for task in sorted(_FOUND, key=lambda task: (task.column, task.name))}

# The tasks that each fine-tune is tested on by default.
TASKS_OF_ROLE: dict[str, tuple[str, ...]] = {
    role: tuple(name for name, task in TASKS.items() if task.role == role) for role in FINETUNED_MODELS
}

LM_EVAL = "lm_eval:"  # before the names of tasks of lm-evaluation-harness
TASK_NAMES = f"{', '.join(TASKS)}, or {LM_EVAL}NAME for a task of lm-evaluation-harness"
LIVEBENCH_TASKS = tuple(name for name, task in TASKS.items() if isinstance(task.data_set, LiveBenchSet))


def reads_data_dir(tasks: Sequence[str]) -> bool:
    """Whether any of these tasks takes its set from --data_dir; those of lm-evaluation-harness do not."""
    return not all(name.startswith(LM_EVAL) for name in tasks)


def find_task(name: str, lm_eval_include_path: Path | None = None) -> Task:
    """A task of ours, or `lm_eval:NAME` of lm-evaluation-harness, from the YAML files below `lm_eval_include_path` or
    else the harness's own. Raises UserError if the harness or such a task is missing."""
    if name in TASKS:
        return TASKS[name]
    from inference_llms.lm_eval_tasks import open_task

    return open_task(name, lm_eval_include_path)


def tasks_of_models(roles: Sequence[str]) -> list[str]:
    """The tasks that models of these roles are tested on by default. Raises UserError for a model of another name."""
    for role in roles:
        if role not in TASKS_OF_ROLE:
            raise UserError(f"--tasks: give the tasks to run; none belong to a model named {role}")
    return [task for role in roles for task in TASKS_OF_ROLE[role]]


def role_of_task(task: str, roles: Sequence[str]) -> str:
    """The merged model whose tokenizer a task uses: the model of its role, else the first."""
    return next((role for role in roles if task in TASKS_OF_ROLE.get(role, ())), roles[0])
