"""What runs left below a results' folder, wherever that folder lies now: records name the places of the time when they
were written, and a folder may be moved or copied since."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference_llms.answer_health import Health, health_on_record
from inference_llms.data_sets import read_rows
from inference_llms.evaluators.results import file_below, path_below_root
from inference_llms.raw_generations import stored_rows
from model_merging_methods.merge_record import RECORD_FILE
from utils.errors import UserError
from utils.json_files import check_shape, read_json_object
from utils.output_places import OutputPlaces


@dataclass(frozen=True)
class ScoresFile:
    """A file of save_scores, and the places of the run that wrote it."""

    path: Path
    places: OutputPlaces


def scores_files(results_dir: Path) -> Iterator[ScoresFile]:
    """The files of save_scores below a results' folder, whole or not, by name."""
    for path in sorted(results_dir.rglob("save_scores/*/**/*.json")):
        root, (tasks, *name) = split_at(results_dir, path, "save_scores")
        if not path.name.startswith("."):
            # The name holds dots of its own.
            yield ScoresFile(path, OutputPlaces(root, tasks, "/".join(name).removesuffix(".json")))


def split_at(results_dir: Path, path: Path, folder: str) -> tuple[Path, tuple[str, ...]]:
    """The root of outputs whose `folder` holds `path`, and the path's parts below that folder."""
    parts = path.relative_to(results_dir).parts
    number = parts.index(folder)
    return results_dir.joinpath(*parts[:number]), parts[number + 1 :]


def merge_record_path(places: OutputPlaces) -> Path | None:
    """The record of a merge: beside its weights, else the one that outlived them; None where there is none."""
    beside = sorted((places.root / "save_merge_models" / places.tasks).glob(f"*/{places.name}/{RECORD_FILE}"))
    return next((path for path in (*beside, places.kept_record()) if path.is_file()), None)


def read_task_records(path: Path) -> dict[str, dict[str, Any]]:
    """The records of a file of scores by task. Raises UserError where the file is not whole."""
    remedy = "remove it and run its command again"
    try:
        records = read_json_object(path, remedy)
    except UserError as error:
        raise UserError(f"{path} is not whole: {error}") from error
    if not all(isinstance(record, dict) for record in records.values()):
        raise UserError(f"{path} is not whole: it does not hold scores by task; {remedy}")
    return records


@dataclass(frozen=True)
class TaskRecordShape:
    """The fields of a task's record that are read."""

    examples: int
    files: list[str]
    raw_generations: str
    evaluator_command: str | None = None
    data_dir: str | None = None
    backend: str | None = None
    command: str | None = None
    identity: dict[str, Any] | None = None


def check_record(path: Path, task: str, record: Mapping[str, Any], root: Path) -> None:
    """Raise UserError unless a task's record in `path` has what every task's record has, and names no file for an
    evaluator outside the outputs below `root`."""
    remedy = "remove it and run its command again"
    check_shape(f"{path}: the record of {task}", record, TaskRecordShape, remedy)
    if record["examples"] < 1:
        raise UserError(f"{path}: the record of {task}: examples: fewer than one; {remedy}")
    for file in own_files(record, root):
        if ".." in file.parts or not file.absolute().is_relative_to(root.absolute()):
            raise UserError(f"{path}: the record of {task} names {file}, which is outside {root}; {remedy}")


def read_health(path: Path, value: Any, remedy: str) -> Health | None:
    """The health that the record in `path` holds. Raises UserError where it is of another form."""
    try:
        return health_on_record(value)
    except ValueError as error:
        raise UserError(f"{path} is not whole: {error}; {remedy}") from error


def own_files(record: Mapping[str, Any], root: Path) -> list[Path]:
    """Where a run's files for an evaluator lie now, its outputs being below `root`."""
    return [file_below(root, Path(file)) for file in record["files"]]


def own_evaluator_command(command: str, record: Mapping[str, Any], root: Path) -> str:
    """An evaluator's `command` on a run's files, with the places where they lie now."""
    for file in record["files"]:
        now, tail = file_below(root, Path(file)), path_below_root(Path(file))
        if tail is None or str(now) == file:
            continue
        before, after = file.removesuffix(str(tail)), str(now).removesuffix(str(tail))
        # A root that must be quoted stands between quotes already.
        after = after if shlex.quote(before) != before else shlex.quote(after)
        return command.replace(f"{before}save_", f"{after}save_")
    return command


def own_completions(record: Mapping[str, Any], task: str, places: OutputPlaces) -> Path | None:
    """The file of a run's own raw completions, where it lies now; None of a replay of completions from elsewhere."""
    own = places.raw_generations(task)
    tail = own.relative_to(places.root).parts
    return own if Path(record["raw_generations"]).parts[-len(tail) :] == tail else None


def read_completions(path: Path, is_replay: bool) -> dict[int | str, str]:
    """Raw completions by id, those of a replay also without their prompts. Raises UserError for a broken line, but for
    a last one that a kill cut off."""
    if is_replay:
        rows = read_rows(path, {"completion": str}, may_end_torn=True)
        return {row.fields.get("id"): row.fields["completion"] for row in rows}
    return {row["id"]: row["completion"] for _, row in stored_rows(path)}
