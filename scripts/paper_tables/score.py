"""A score with all that tells where it comes from: a row of the tidy CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from inference_llms.answer_health import Health
from utils.intervals import mean_interval, wilson_interval

OK, MISSING, UNREADABLE, CONFLICT = "ok", "missing", "unreadable", "two results"
# The fields of a score that has no value.
NO_VALUE: dict[str, Any] = {"value": None, "low": None, "high": None, "values": None, "right": None}


@dataclass(frozen=True)
class Score:
    """One result, or the lack of one, of one merge on one data set.

    `value`, `low` and `high` (95%) in per cent; None where `status` is not ok, and then `note` says why. `inputs`: the
    names of the models that were merged. `variant`: what the merge has beside the paper's parameters. `alpha`, `seed`,
    `ratios`: of M3; `seed` of DARE too. `attack`: of an attacked prompt. `health` of the answers, to the
    attacked prompt where there is one. `values` of each example by id, 0 to 1, and `right` before and after an attack,
    for each sample: for comparisons, not in the CSV.
    """

    models: str
    inputs: str
    method: str
    variant: str
    mixup: bool
    dare: bool
    alpha: float | None
    seed: int | None
    ratios: str
    dataset: str
    attack: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    examples: int | None
    status: str
    note: str
    backend: str
    command: str
    evaluator_command: str
    merge_command: str
    merge_record: str
    fingerprint: str
    result_file: str
    health: Health | None = None
    values: tuple[tuple[int | str, float], ...] | None = None
    right: tuple[tuple[bool, ...], tuple[bool, ...]] | None = None

    @property
    def line(self) -> tuple:
        """What the score is of, seeds apart: scores of one line are draws of one thing."""
        return (self.models, self.method, self.variant, self.mixup, self.dare, self.alpha, self.dataset, self.attack)

    @property
    def draw(self) -> tuple:
        return (self.seed, self.ratios)


def without_value(about: Mapping[str, Any], dataset: str, attack: str, status: str, note: str) -> Score:
    """The lack of a result, with what is known `about` it: fields of a score."""
    empty = {field.name: {str: "", bool: False}.get(field.type) for field in fields(Score)}
    known = {"dataset": dataset, "attack": attack, "status": status, "note": note}
    return Score(**{**empty, **about, **known})


def percent_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of a mean in per cent: Wilson's where each value is right or wrong, else by bootstrap."""
    if all(value in (0, 1) for value in values):
        low, high = wilson_interval(int(sum(values)), len(values))
    else:
        low, high = mean_interval(values)
    return 100 * low, 100 * high


def share_interval(share: float, examples: int) -> tuple[float, float]:
    """Wilson's 95% interval in per cent of a share whose single answers are not known."""
    low, high = wilson_interval(share * examples, examples)
    return 100 * low, 100 * high


COLUMNS = [field.name for field in fields(Score) if field.name not in ("health", "values", "right")]
# Columns of the health, beside the number of answers, which `examples` is.
HEALTH_COLUMNS = [field.name for field in fields(Health) if field.name != "answers"]


def scores_csv(scores: Sequence[Score]) -> str:
    """The tidy table: a row for each score."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *HEALTH_COLUMNS])
    for score in scores:
        cells = [_shown(getattr(score, column)) for column in COLUMNS]
        writer.writerow([*cells, *(getattr(score.health, column, None) for column in HEALTH_COLUMNS)])
    return text.getvalue()


def _shown(value: object) -> object:
    """Without the noise of the last digits of a float."""
    return round(value, 6) if isinstance(value, float) else value
