"""The figures that the papers' authors published, and where they stand."""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from scripts.paper_tables.names import DATA_SETS, METHODS

FILE = Path(__file__).with_name("published_results.csv")


@dataclass(frozen=True)
class Published:
    """A published value in per cent, its metric and its source."""

    value: float
    metric: str
    source: str


@cache
def _by_place() -> dict[tuple, Published]:
    with open(FILE, encoding="utf-8", newline="") as file:
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
    """The published value of this merge on this set, if there is one. The figures of LiveBench and of the attacks do
    not say their method, those of the attacks not their set either: they are found under an empty one."""
    return _by_place().get((models, method, mixup, dare, dataset))


def whole_set(dataset: str) -> int:
    """The number of examples that published values are over."""
    return next(examples for name, examples in DATA_SETS.values() if name == dataset)
