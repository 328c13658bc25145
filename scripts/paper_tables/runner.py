"""Run cells. A job is a merge with all of its cells, so that it is merged once and its weights can then be deleted."""

import logging
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any, BinaryIO

from model_merging_methods.merge_record import RECORD_FILE
from scripts.paper_tables.cells import (
    DONE,
    FAILED,
    PLANNED,
    RUNNING,
    Cell,
    CellState,
    read_state,
    state_path,
    write_state,
)
from scripts.paper_tables.commands import (
    ROOT,
    Command,
    Setting,
    cell_commands,
    effective,
    existing_results,
    hash_inputs,
    holds_other_merge,
    input_files,
    merge_places,
    merged_model,
    output_root,
    result_files,
)
from utils.child_processes import child_process, interrupt_children
from utils.content_hashes import check_unchanged, file_states
from utils.errors import UserError
from utils.whole_files import Busy, locked, remove_folder, whole_file

log = logging.getLogger(__name__)

ERROR = "error: "  # a script's line that says why it stopped begins so
SIGNALS = {one.value: one.name for one in signal.Signals}
LARGEST_ENDING = 1 << 16  # bytes at the end of a log in which that line is looked for

Job = Sequence[Cell]


@dataclass(frozen=True)
class Outcome:
    """What became of a cell; `reason` if it failed."""

    cell: Cell
    status: str
    reason: str | None = None


def jobs_of_cells(cells: Sequence[Cell], setting: Setting) -> list[list[Cell]]:
    """The cells by merge, in the order in which merges are first named. Raises UserError if a cell is wrong."""
    jobs: dict[Any, list[Cell]] = {}
    for cell in cells:
        try:
            jobs.setdefault(merge_places(cell, setting), []).append(cell)
        except UserError as error:
            raise UserError(f"cell {cell.name}: {error}") from None
    return list(jobs.values())


def is_done(cell: Cell, setting: Setting) -> bool:
    """Whether a cell was run with these options, on the models and sets as they are now, and all its results still
    exist. The number of GPUs does not matter. Models and sets that are no longer on this machine count as unchanged."""
    state, results = _state(cell, setting), existing_results(cell, setting)
    return (
        state is not None
        and state.status == DONE
        and _ran_with(state, cell, setting)
        and results.keys() == set(cell.attacks or cell.tasks)
        and state.result_options in (None, _options_of_results(cell, setting))
        and not _changed_inputs(cell, setting, state)
    )


def _state(cell: Cell, setting: Setting) -> CellState | None:
    try:
        return read_state(state_path(setting.results_dir, cell))
    except UserError:
        return None


def _ran_with(state: CellState, cell: Cell, setting: Setting) -> bool:
    """Whether a cell's last success was with its commands of now."""
    commands = cell_commands(cell, setting)
    return state.runs in ([command.data for command in commands], [command.text for command in commands])


def _options_of_results(cell: Cell, setting: Setting) -> dict[str, Any]:
    """By task or attack, the options that each result has on record."""
    results = existing_results(cell, setting)
    return {name: effective(result.get("options") or {}) for name, result in results.items()}


def _changed_inputs(cell: Cell, setting: Setting, state: CellState) -> list[str]:
    """The inputs that changed since a cell was run; none if an earlier version ran it and kept no hashes."""
    if state.hashes is None:
        return []
    try:
        now = hash_inputs(cell, setting)
    except (UserError, OSError):  # reported when the cell runs
        return ["model"]
    return [name for name, found in now.items() if state.hashes.get(name) != found]


def run_jobs(
    jobs: Sequence[Job], setting: Setting, slots: Sequence[dict[str, str]], delete_merged_models: bool
) -> list[Outcome]:
    """Run the jobs, one at a time in each of the `slots`: environment variables that give a job its part of the
    machine. A failure is reported and stops nothing else. Jobs that another process runs are waited for. Ctrl-C stops
    all; a rerun resumes."""
    for job in jobs:
        with suppress(Busy), locked(_lock_name(job, setting)):
            for cell in job:
                if not is_done(cell, setting):
                    _record(cell, setting, PLANNED)
    stopped = threading.Event()
    free: queue.Queue[dict[str, str]] = queue.Queue()
    for slot in slots:
        free.put(slot)
    busy: list[Job] = []

    def run(job: Job, waits: bool) -> list[Outcome]:
        slot = free.get()
        try:
            with locked(_lock_name(job, setting), waits):
                return run_job(job, setting, slot, delete_merged_models, stopped)
        except Busy as error:
            log.info("%s", error)
            busy.append(job)
            return []
        finally:
            free.put(slot)

    pool = ThreadPoolExecutor(len(slots))
    try:
        outcomes = [*pool.map(run, jobs, repeat(False))]
        if busy:
            log.info("waiting for the other process")
            outcomes += pool.map(run, busy, repeat(True))
        return [outcome for of_job in outcomes for outcome in of_job]
    finally:
        stopped.set()
        interrupt_children()
        pool.shutdown(cancel_futures=True)


def _lock_name(job: Job, setting: Setting) -> Path:
    return merge_places(job[0], setting).kept_record()


def run_job(
    job: Job, setting: Setting, slot: dict[str, str], delete_merged_models: bool, stopped: threading.Event
) -> list[Outcome]:
    """Run one merge's cells in turn, until `stopped` is set."""
    outcomes = []
    ran: set[str] = set()
    for cell in job:
        if stopped.is_set():
            return outcomes
        if is_done(cell, setting):
            continue
        reason = run_cell(cell, setting, slot, ran)
        outcomes.append(Outcome(cell, DONE if reason is None else FAILED, reason))
        log.info("%s: %s%s", outcomes[-1].status, cell.name, "" if reason is None else f": {reason}")
    if delete_merged_models:
        places = merge_places(job[0], setting)
        for folder in (places.root / "save_merge_models" / places.tasks).glob(f"*/{places.name}"):
            remove_folder(folder)
    return outcomes


def run_cell(cell: Cell, setting: Setting, slot: dict[str, str], ran: set[str]) -> str | None:
    """Run a cell and record what becomes of it; returns why it failed, or None. `ran`: as in `_run_commands`."""
    started = time.time()
    try:
        before = file_states(file for files in input_files(cell, setting).values() for file in files)
        replaced = _commands_to_replace(cell, setting, ran)
        _record(cell, setting, RUNNING)
        _run_commands(cell, setting, slot, ran, replaced)
        check_unchanged(before, file_states(before))
    except (UserError, OSError) as error:
        _record(cell, setting, FAILED, reason=str(error))
        return str(error)
    commands = cell_commands(cell, setting)
    _record(
        cell,
        setting,
        DONE,
        started=started,
        seconds=time.time() - started,
        results=[str(path) for path in result_files(cell, setting)],
        runs=[command.data for command in commands],
        hashes=hash_inputs(cell, setting),
        result_options=_options_of_results(cell, setting),
    )
    return None


def _run_commands(
    cell: Cell, setting: Setting, slot: dict[str, str], ran: set[str], replaced: Sequence[Command]
) -> None:
    """Run a cell's commands, with their output in a log beside its state. Raises UserError for the first that fails.

    `ran`: commands that another cell of the same merge ran; this call adds its own. The merge command runs even if the
    model exists: the main job knows whether it is the same."""
    with open(state_path(setting.results_dir, cell).with_suffix(".log"), "wb") as output:
        for command in cell_commands(cell, setting):
            if command.text in ran:
                continue
            reason = run_command(command, slot, output, overwrite=command in replaced)
            _keep_merge_record(cell, setting)
            if reason is not None:
                raise UserError(reason)
            ran.add(command.text)


def _commands_to_replace(cell: Cell, setting: Setting, ran: set[str]) -> list[Command]:
    """The commands of a cell that must replace existing results, because its models or sets changed since it was run.

    Raises UserError if its place holds a merge of other models that these commands did not make."""
    state, commands = _state(cell, setting), cell_commands(cell, setting)
    was_run = state is not None and state.hashes is not None and _ran_with(state, cell, setting)
    replaces_merge = commands[0].text not in ran and holds_other_merge(cell, setting)
    if replaces_merge and not was_run:
        raise UserError(f"{setting.results_dir} holds this merge of other models; choose another --results_dir")
    changed = _changed_inputs(cell, setting, state) if was_run else []
    if not changed:
        return []
    log.info("%s: run again, replacing its results: another %s", cell.name, ", another ".join(changed))
    if cell.attacks:
        for path in result_files(cell, setting):
            path.unlink(missing_ok=True)
    return [*([] if cell.attacks else commands[-1:]), *(commands[:1] if replaces_merge else [])]


def run_command(command: Command, slot: dict[str, str], output: BinaryIO, overwrite: bool = False) -> str | None:
    """Run a command, with its output in the file `output`; returns why it failed, or None."""
    output.write(f"$ {command.text}\n".encode())
    output.flush()
    start = output.tell()
    # Unbuffered, so that the log has all lines in the order in which they were written.
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **slot}
    words = [sys.executable, *command.words, *(["--overwrite"] if overwrite else [])]
    with child_process(words, environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT) as process:
        status = process.wait()
    return None if status == 0 else why_it_ended(status, Path(output.name), start)


def why_it_ended(status: int, log_file: Path, start: int) -> str:
    """One line on why a command failed that ended with this `status` (negative: minus the signal that killed it) and
    wrote to `log_file` from byte `start` on: its error, else its last line."""
    if status == -signal.SIGKILL:
        return "killed by SIGKILL; out of memory?"
    if status < 0:
        return f"killed by {SIGNALS.get(-status, f'signal {-status}')}"
    with open(log_file, "rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - LARGEST_ENDING))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    last = [line for line in lines if line.startswith(ERROR)] or [line for line in lines if line]
    return last[-1].removeprefix(ERROR) if last else f"ended with status {status} and no message"


def _record(cell: Cell, setting: Setting, status: str, **about: Any) -> None:
    """Record what became of a cell. Existing results keep the commands that made them until others replace them."""
    places, before = merge_places(cell, setting), _state(cell, setting)
    commands = [command.text for command in cell_commands(cell, setting)]
    if status != DONE and existing_results(cell, setting):
        commands = [] if before is None else before.commands
    kept = {} if before is None else {name: getattr(before, name) for name in ("runs", "hashes", "result_options")}
    state = CellState(
        merge=cell.merge,
        script=cell.script,
        options=cell.options,
        tables=list(cell.tables),
        commands=commands,
        status=status,
        root=str(output_root(cell, setting)),
        tasks_name=places.tasks,
        name=places.name,
    )
    write_state(setting.results_dir, replace(state, **{**kept, **about}))


def _keep_merge_record(cell: Cell, setting: Setting) -> None:
    """Copy the merge's record to a place where it outlives the weights."""
    record = merged_model(cell, setting) / RECORD_FILE
    if record.is_file():
        with whole_file(merge_places(cell, setting).kept_record()) as copy:
            shutil.copyfile(record, copy)
