"""Names in the paper's tables, and the values that the authors published."""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from inference_llms.tasks import TASKS

ROLES = {"instruct": "LM", "math": "Math", "code": "Code"}
# By task: the data set's name and test size in the paper (LiveBench: release 2024-11-25).
DATA_SETS = {name: (task.title, task.set_size) for name, task in TASKS.items()}
DATA_SETS |= {"sst2": ("SST-2", 872), "cola": ("CoLA", 516)}
METHODS = {"average_merging": "average", "task_arithmetic": "task arithmetic", "ties_merging": "TIES"}
PAPER_ALPHA = 0.5
RATIOS_GIVEN = "λ given"  # in the variant of a merge with M3 whose ratios were not drawn
PUBLISHED = Path(__file__).with_name("published_results.csv")


def models_name(tasks_name: str) -> str:
    """`instruct_math` as LM & Math."""
    return " & ".join(ROLES.get(role, role) for role in tasks_name.split("_"))


def dataset_name(task: str) -> str:
    return DATA_SETS[task][0] if task in DATA_SETS else task


def whole_set(dataset: str) -> int:
    """The number of examples of published values."""
    return next(examples for name, examples in DATA_SETS.values() if name == dataset)


@dataclass(frozen=True)
class Published:
    """A published value in per cent, its metric and its source."""

    value: float
    metric: str
    source: str


@cache
def _published() -> dict[tuple, Published]:
    with open(PUBLISHED, encoding="utf-8", newline="") as file:
        return {
            (
                row["models"],
                METHODS.get(row["method"], row["method"]),
                row["mixup"] == "yes",
                row["dare"] == "yes",
                row["dataset"],
            ): Published(float(row["value"]), row["metric"], row["source"])
            for row in csv.DictReader(file)
        }


def published_value(models: str, method: str, mixup: bool, dare: bool, dataset: str) -> Published | None:
    """The published value of this merge on this set, if there is one. Published LiveBench values name no method,
    and those of attacks neither method nor set: pass empty strings for these."""
    return _published().get((models, method, mixup, dare, dataset))
