"""Read a results folder: scores files, merge records, cell states and notes of evaluators.

Records have the paths of the time when they were written. The folder may have been moved or copied since.
"""

import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from inference_llms.answer_health import Health, health_on_record
from inference_llms.evaluators.results import file_below, path_below_root
from inference_llms.prompt_format import PromptFormat, prompt_format_on_record
from model_merging_methods.merge_parameters import Mask, MergeParameters, mask_of, parameters_from_fields
from model_merging_methods.merge_record import PRETRAINED, RECORD_FILE
from model_merging_methods.method import Option, Value
from model_merging_methods.model_card import model_name
from scripts.paper_tables.cells import (
    ALONE,
    DONE,
    FAILED,
    MAIN_JOB,
    RUNNING,
    STATES,
    CellState,
    merge_of_options,
    merge_record_path,
    options_of_text,
    read_state,
)
from scripts.paper_tables.names import METHODS, RATIOS_GIVEN, models_name
from utils.errors import UserError
from utils.json_files import check_shape, read_json_object
from utils.output_places import SINGLE_MODEL, OutputPlaces

RERUN = "remove it and rerun its command"
SYMBOLS = {"scaling_coefficient": "s", "param_value_mask_rate": "r", "weight_mask_rate": "p"}  # as in the papers
NOTES = "paper_evaluators.json"  # below the results folder: why a file was not scored


@dataclass(frozen=True)
class TaskRecord:
    """The record of a task in a scores file, and the places of the run. `fault`: why it is not usable; without a
    `task`, why the whole file is not."""

    path: Path
    places: OutputPlaces
    task: str = ""
    content: dict[str, Any] = field(default_factory=dict)
    fault: str = ""

    @property
    def files(self) -> list[Path]:
        """The present paths of the run's files for an evaluator."""
        return [file_below(self.places.root, Path(file)) for file in self.content["files"]]

    def relocated(self, command: str) -> str:
        """An evaluator's `command` with the present paths of the run's files."""
        for file, now in zip(self.content["files"], map(str, self.files), strict=True):
            tail = path_below_root(Path(file))
            if tail is None or now == file:
                continue
            before, after = file.removesuffix(str(tail)), now.removesuffix(str(tail))
            # A root that needs quotes already has them in the command.
            after = after if shlex.quote(before) != before else shlex.quote(after)
            return command.replace(f"{before}save_", f"{after}save_")
        return command

    def completions_file(self) -> Path | None:
        """The present path of the run's raw completions; None for a replay of another run's."""
        path = self.places.raw_generations(self.task)
        tail = path.relative_to(self.places.root).parts
        return path if Path(self.content["raw_generations"]).parts[-len(tail) :] == tail else None

    @property
    def metrics(self) -> dict[str, float]:
        """The task's metrics; none if an earlier version did not list them."""
        found = {name: self.content.get(name) for name in self.content.get("metrics") or ()}
        return {name: value for name, value in found.items() if isinstance(value, int | float)}

    @property
    def prompt_format(self) -> PromptFormat:
        """The format of the run's prompts. Raises UserError if the record has another form."""
        return read_prompt_format(self.path, self.content.get("identity"))

    def options(self, command: str = "") -> dict[str, Any]:
        """The options of the run. Earlier versions recorded only a command, or none: then `command` is used."""
        return self.content.get("options") or options_of_text(self.content.get("command") or command)


@dataclass(frozen=True)
class TaskRecordShape:
    """The fields of a task's record that are read."""

    examples: int
    files: list[str]
    raw_generations: str
    metrics: list[str] | None = None
    evaluator_command: str | None = None
    data_dir: str | None = None
    backend: str | None = None
    command: str | None = None
    options: dict[str, Any] | None = None
    identity: dict[str, Any] | None = None


class ResultsFolder:
    """`cells`: the states on record, by their file; `broken_cells`: why other files are not readable."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.cells: dict[Path, CellState] = {}
        self.broken_cells: dict[Path, str] = {}
        for path in sorted((folder / STATES).glob("*.json")):
            try:
                self.cells[path] = read_state(path)
            except UserError as error:
                self.broken_cells[path] = str(error)

    @cached_property
    def merges(self) -> dict[tuple[Path, str], OutputPlaces]:
        """The places of every merge on record, by root and the merge's name in one word."""
        found = []
        for path in self.folder.rglob("merge_records/*/**/*.json"):
            root, (tasks, *name) = split_at(self.folder, path, "merge_records")
            found.append(OutputPlaces(root, tasks, "/".join(name).removesuffix(".json")))
        for path in self.folder.rglob(f"save_merge_models/*/*/**/{RECORD_FILE}"):
            root, (tasks, _, *name, _) = split_at(self.folder, path, "save_merge_models")
            if name and not path.parent.name.startswith("."):  # hidden: a merge that was killed
                found.append(OutputPlaces(root, tasks, "/".join(name)))
        return {(places.root, places.model): places for places in found}

    @cached_property
    def _notes(self) -> dict[str, Any]:
        try:
            return read_json_object(self.folder / NOTES, "")
        except UserError:  # missing or damaged; the next call of the evaluators writes it again
            return {}

    def why_not_scored(self, file: Path) -> str:
        """The note of the evaluators' last call on a run's file."""
        default = "not judged yet: its command is in scores.csv"
        return str(self._notes.get(note_key(self.folder, file), default))

    def about(self, places: OutputPlaces) -> dict[str, Any]:
        """The fields of a score that come from the merge's record, or else from its cell."""
        about = about_merge(places)
        if "fingerprint" in about:
            return about
        state = next((state for state in self.cells.values() if state.places(self.folder) == places), None)
        if state is None or state.cell.is_alone:
            return about
        return about | about_parameters(merge_of_options(state.cell.merge)[1])

    def commands(self, places: OutputPlaces, script: str, task: str, attack: str = "") -> dict[str, str]:
        """The commands of the cell that made a result, or the last one of several. Empty without a cell."""
        states = [
            state
            for state in self.cells.values()
            if (state.cell.script, state.places(self.folder)) == (script, places) and state.commands
            if task in state.cell.tasks and (not attack or attack in state.cell.attacks)
        ]
        state = max(states, key=lambda state: (state.status == DONE, state.started or 0), default=None)
        commands = [""] if state is None else state.commands
        return {"command": commands[-1], "merge_command": "" if script == ALONE else commands[0]}


def note_key(results_dir: Path, file: Path) -> str:
    """A file's key in the notes, which stays right if the results folder is moved."""
    return os.path.relpath(file, results_dir)


def task_records(results_dir: Path) -> Iterator[TaskRecord]:
    """The records in all files of save_scores, usable or not, by file name."""
    for path in sorted(results_dir.rglob("save_scores/*/**/*.json")):
        if path.name.startswith("."):
            continue
        root, (tasks, *name) = split_at(results_dir, path, "save_scores")
        places = OutputPlaces(root, tasks, "/".join(name).removesuffix(".json"))
        try:
            records = read_json_object(path, RERUN)
        except UserError as error:
            yield TaskRecord(path, places, fault=f"{path} is damaged: {error}")
            continue
        if not all(isinstance(record, dict) for record in records.values()):
            yield TaskRecord(path, places, fault=f"{path} is damaged: it does not hold scores by task; {RERUN}")
            continue
        for task, content in records.items():
            record = TaskRecord(path, places, task, content)
            try:
                _check(record)
                yield record
            except UserError as error:
                yield replace(record, fault=str(error))


def _check(record: TaskRecord) -> None:
    """Raise UserError unless a record has the fields of every task's record, and names no file outside its root."""
    place, root = f"{record.path}: the record of {record.task}", record.places.root
    check_shape(place, record.content, TaskRecordShape, RERUN)
    if record.content["examples"] < 1:
        raise UserError(f"{place}: examples: fewer than one; {RERUN}")
    for file in record.files:
        if ".." in file.parts or not file.absolute().is_relative_to(root.absolute()):
            raise UserError(f"{place} names {file}, which is outside {root}; {RERUN}")


def split_at(results_dir: Path, path: Path, folder: str) -> tuple[Path, tuple[str, ...]]:
    """The root of outputs whose `folder` holds `path`, and the path's parts below that folder."""
    parts = path.relative_to(results_dir).parts
    number = parts.index(folder)
    return results_dir.joinpath(*parts[:number]), parts[number + 1 :]


def about_merge(places: OutputPlaces) -> dict[str, Any]:
    """The fields of a score that come from the merge's record. Few without a record; of a damaged one, its path but no
    fingerprint."""
    if places.tasks == SINGLE_MODEL:
        about = {"models": places.name}
    else:
        about = {"models": models_name(places.tasks), "variant": places.name}
    path = merge_record_path(places)
    if path is None:
        return about
    about["merge_record"] = str(path)
    try:
        record = read_json_object(path, "")
        folders = [Path(entry["folder"]) for entry in record["inputs"] if entry["role"] != PRETRAINED]
        inputs = " + ".join(map(model_name, folders))
        parameters = about_parameters(parameters_from_fields(record["parameters"]))
        return {**about, **parameters, "fingerprint": record["fingerprint"], "inputs": inputs}
    except (UserError, KeyError, TypeError, AttributeError):
        return about


def about_parameters(parameters: MergeParameters) -> dict[str, Any]:
    """A merge's parameters that the paper's tables distinguish; other differences are its variant."""
    mask, mixup = parameters.mask, parameters.mixup
    variant = _changed_options(parameters.values, parameters.declared.options)
    dare = mask is not None and _is_dare(mask)
    if dare:
        variant += _changed_options({"weight_mask_rate": mask.values["weight_mask_rate"]}, mask.declared.options)
    elif mask is not None:
        values = mask.values
        rate = [_text(values.pop("weight_mask_rate"))] if "weight_mask_rate" in values else []
        variant.append(" ".join(["mask", mask.strategy, mask.weight_format, *rate]))
        values.pop("use_weight_rescale", None)
        variant += _changed_options(values, mask.declared.options)
    if mixup is not None and mixup.alpha is None:
        variant.append(RATIOS_GIVEN)
    if parameters.dtype is not None:
        variant.append(parameters.dtype)
    if parameters.exclude_param_names_regex:
        variant.append(f"without {' '.join(parameters.exclude_param_names_regex)}")
    return {
        "method": METHODS.get(parameters.method, parameters.method),
        "variant": ", ".join(variant),
        "mixup": mixup is not None,
        "dare": dare,
        "alpha": None if mixup is None else mixup.alpha,
        "seed": parameters.seed if parameters.uses_seed else None,
        "ratios": "" if mixup is None else " ".join(map(str, parameters.to_fields()["mixup"]["weights"])),
    }


def _is_dare(mask: Mask) -> bool:
    """Whether this is the paper's DARE: random, over delta weights, and rescaled, at any rate."""
    paper = {"use_weight_rescale": True, "weight_mask_rate": mask.values.get("weight_mask_rate")}
    return mask.name == "dare" and mask == mask_of("dare", **paper)


def _changed_options(values: Mapping[str, Value], declared: Mapping[str, Option]) -> list[str]:
    """The options that are not at their default, such as `s = 0.7`."""
    changed = {name: value for name, value in values.items() if value != declared[name].default}
    return [f"{SYMBOLS.get(name, name)} = {_text(value)}" for name, value in changed.items()]


def _text(value: Value) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def why_missing(path: Path, state: CellState) -> str:
    """Why a cell lacks a result."""
    if state.status == DONE:
        return f"the cell ran, but its result no longer exists; remove {path} and rerun its script"
    if state.status == FAILED:
        return f"failed: {state.reason or ''}"
    return "interrupted, or running now" if state.status == RUNNING else "not run yet"


def remake_command(about: Mapping[str, Any]) -> str:
    """The command that repeats a merge from its record."""
    record = about.get("merge_record")
    return shlex.join(["python", MAIN_JOB, "--from_record", record, "--merge_only"]) if record else ""


def check_same_weights(about: Mapping[str, Any], fingerprint: str | None) -> None:
    """Raise UserError if a result has another fingerprint of its weights than its merge."""
    record, expected = about.get("merge_record"), about.get("fingerprint")
    if record and not expected:
        raise UserError(f"{record} is not a complete record of a merge; remove it and make the merge again")
    if expected and fingerprint not in (None, expected):
        raise UserError(f"{about['result_file']} holds results of other weights than those of {record}")


def read_prompt_format(path: Path, identity: Any) -> PromptFormat:
    """The format in an identity in a record of `path`. Raises UserError if it has another form."""
    try:
        return prompt_format_on_record(identity)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; {RERUN}") from error


def read_health(path: Path, value: Any) -> Health | None:
    """The health in a record of `path`. Raises UserError if it has another form."""
    try:
        return health_on_record(value)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}; {RERUN}") from error
