"""From the result of an attack on a prompt to its score, the performance drop rate."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.paper_tables.found import Found, check_weights
from scripts.paper_tables.names import DATA_SETS
from scripts.paper_tables.score import MISSING, OK, UNREADABLE, Score, without_value
from scripts.paper_tables.stored_results import read_health
from utils.errors import UserError
from utils.intervals import drop_rate_interval
from utils.json_files import check_shape, read_json_object
from utils.output_places import SINGLE_MODEL, OutputPlaces

METRIC = "PDR"
AGAIN = "remove it and run its command again"


def attack_scores(found: Found) -> Iterator[Score]:
    """The drop rates of the files in save_adversarial_results: what is wrong with one takes nothing from another."""
    for path in sorted(found.results_dir.rglob("save_adversarial_results/*/*/*.json")):
        if not path.name.startswith("."):
            yield _attack_score(found, path)


def _attack_score(found: Found, path: Path) -> Score:
    root, task, model, attack = path.parents[3], path.parents[1].name, path.parent.name, path.stem
    places = found.merges.get((root, model), OutputPlaces(root, SINGLE_MODEL, model))
    about = {**found.about(places), **found.commands(places, f"promptbench/{task}.py", task, attack)}
    about |= {"metric": METRIC, "evaluator_command": "", "result_file": str(path)}
    dataset = DATA_SETS.get(task, (task, 0))[0]
    try:
        report = read_json_object(path, AGAIN)
        _check_report(path, report)
        settings = report["settings"]
        about |= {"backend": settings["backend"], "examples": settings["number_of_samples"]}
        about["command"] = report.get("command") or about["command"]
        about["health"] = read_health(path, report.get("attacked_health"), AGAIN)
        check_weights(about, settings["weights_fingerprint"])
    except UserError as error:
        return without_value(about, dataset, attack, UNREADABLE, str(error))
    clean, attacked = (100 * report[name] for name in ("clean_accuracy", "attacked_accuracy"))
    told = f"accuracy {clean:.1f} clean, {attacked:.1f} attacked"
    if report["performance_drop_rate"] is None:
        note = f"undefined, for the clean accuracy is 0; {told}"
        return without_value(about, dataset, attack, MISSING, note)
    right = (tuple(report["clean_right"]), tuple(report["attacked_right"]))
    low, high = drop_rate_interval(right[:1], right[1:])
    return Score(
        **about,
        dataset=dataset,
        attack=attack,
        value=100 * report["performance_drop_rate"],
        low=100 * low,
        high=100 * high,
        status=OK,
        note=told,
        right=right,
    )


@dataclass(frozen=True)
class SettingsShape:
    """The fields of an attack's settings that are read."""

    backend: str
    weights_fingerprint: str
    number_of_samples: int


@dataclass(frozen=True)
class ReportShape:
    """The fields of an attack's result that are read."""

    settings: SettingsShape
    clean_accuracy: float
    attacked_accuracy: float
    performance_drop_rate: float | None
    clean_right: list[bool]
    attacked_right: list[bool]
    command: str | None = None


def _check_report(path: Path, report: Mapping[str, Any]) -> None:
    """Raise UserError unless a report holds what a score is made of, and its accuracies are those of its samples."""
    check_shape(f"{path} is not whole", report, ReportShape, AGAIN)
    samples = report["settings"]["number_of_samples"]
    shares = []
    for name in ("clean", "attacked"):
        right = report[f"{name}_right"]
        if samples < 1 or len(right) != samples or not abs(sum(right) / samples - report[f"{name}_accuracy"]) <= 1e-6:
            raise UserError(f"{path}: its {name} accuracy is not that of its {samples} samples; {AGAIN}")
        shares.append(sum(right) / samples)
    clean, attacked = shares
    rate = report["performance_drop_rate"]
    if (rate is None) != (clean == 0) or (rate is not None and not abs(rate - (clean - attacked) / clean) <= 1e-6):
        raise UserError(f"{path}: its drop rate is not that of its accuracies; {AGAIN}")
