"""Running cells: a job is a merge and all that tables ask of it, so that it is made once and its weights can go."""

import logging
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, BinaryIO

from model_merging_methods.merge_record import RECORD_FILE
from scripts.paper_tables.cell import Cell, read_state, state_path, write_state
from scripts.paper_tables.cell_inputs import hash_inputs, input_files
from scripts.paper_tables.commands import (
    ROOT,
    Setting,
    cell_commands,
    holds_other_merge,
    interpreter_words,
    merge_places,
    merged_model,
    output_dir,
    result_files,
    results_there,
    shell_words,
)
from utils.child_processes import child_process, interrupt_children
from utils.content_hashes import check_unchanged, file_states
from utils.errors import UserError
from utils.whole_files import Busy, locked, remove_folder, whole_file

log = logging.getLogger(__name__)

# What a cell may come to.
PLANNED, RUNNING, DONE, FAILED = "planned", "running", "done", "failed"
ERROR = "error: "  # how the line begins in which a script tells what is wrong
SIGNALS = {each.value: each.name for each in signal.Signals}
OVERWRITE = "--overwrite"
LARGEST_ENDING = 1 << 16  # bytes of a log that are looked through for that line


@dataclass(frozen=True)
class Outcome:
    """What became of a cell, and why where it failed."""

    cell: Cell
    status: str
    reason: str | None = None


def jobs_of_cells(cells: Sequence[Cell], setting: Setting) -> list[list[Cell]]:
    """The cells by merge, in the order in which merges are named first."""
    jobs: dict[tuple, list[Cell]] = {}
    for cell in cells:
        places = merge_places(cell, setting)
        jobs.setdefault((places.root, places.tasks, places.name), []).append(cell)
    return list(jobs.values())


def is_done(cell: Cell, setting: Setting) -> bool:
    """Whether a cell was run with these very commands, on however many GPUs, on the models and sets that are there now,
    and all its results are still there. Models and sets that are not on this machine any more count as unchanged."""
    state, results = read_state(setting.results_dir, cell), results_there(cell, setting)
    typed = _as_compared(_typed_commands(cell, setting))
    told = [result["command"] for result in results.values() if isinstance(result, dict) and result.get("command")]
    return (
        state.get("status") == DONE
        and _as_compared(state.get("commands", ())) == typed
        and results.keys() == set(cell.attacks or cell.tasks)
        and set(_as_compared(told)) <= set(typed)
        and not _changed_inputs(cell, setting, state)
    )


def run_jobs(
    jobs: Sequence[Sequence[Cell]], setting: Setting, slots: Sequence[dict[str, str]], delete_merged_models: bool
) -> list[Outcome]:
    """Run the jobs, as many at a time as there are `slots`: environment variables that say what a job may use of the
    machine. What fails is reported and stops nothing else. What another process runs is waited for. Ctrl-C stops all; a
    rerun resumes."""
    for job in jobs:
        with suppress(Busy), locked(_place(job, setting)):
            for cell in job:
                if not is_done(cell, setting):
                    _keep(cell, setting, PLANNED)
    stopped = threading.Event()
    free: queue.Queue[dict[str, str]] = queue.Queue()
    for slot in slots:
        free.put(slot)

    busy: list[Sequence[Cell]] = []

    def run(job: Sequence[Cell], waits: bool) -> list[Outcome]:
        slot = free.get()
        try:
            with locked(_place(job, setting), waits):
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


def _place(job: Sequence[Cell], setting: Setting) -> Path:
    """A name for a job that all processes share."""
    return merge_places(job[0], setting).kept_record()


def run_job(
    job: Sequence[Cell],
    setting: Setting,
    slot: dict[str, str],
    delete_merged_models: bool,
    stopped: threading.Event,
) -> list[Outcome]:
    """Run one merge's cells in turn, until `stopped` is set."""
    outcomes = []
    ran: set[tuple[str, ...]] = set()
    for cell in job:
        if stopped.is_set():
            return outcomes
        if is_done(cell, setting):
            continue
        outcome = run_cell(cell, setting, slot, ran)
        outcomes.append(outcome)
        told = "" if outcome.reason is None else f": {outcome.reason}"
        log.info("%s: %s%s", outcome.status, cell.name, told)
    if delete_merged_models:
        _delete_models(job[0], setting)
    return outcomes


def run_cell(cell: Cell, setting: Setting, slot: dict[str, str], ran: set[tuple[str, ...]]) -> Outcome:
    """Run a cell's commands, up to the first that fails; their output goes to a log beside its state.

    What stands in `ran` was run for another cell of the same merge; what is run now is added to it. The merge is asked
    for even where a model is there already: the main job knows whether it is the same. Results of the same commands on
    models or sets that changed since are replaced."""
    state = read_state(setting.results_dir, cell)
    started = time.time()
    commands = cell_commands(cell, setting)
    reason, replaced, before = None, [], {}
    try:
        before = file_states(file for files in input_files(cell, setting).values() for file in files)
        replaced = _commands_to_replace(cell, setting, state, merges=tuple(commands[0]) not in ran)
    except (UserError, OSError) as error:
        reason = str(error)
    _keep(cell, setting, RUNNING)
    with open(log_path(cell, setting), "wb") as output:
        for words in commands:
            if reason is None and tuple(words) not in ran:
                reason = run_command([*words, *([OVERWRITE] if words in replaced else [])], slot, output)
                _keep_merge_record(cell, setting)
            if reason is not None:
                _keep(cell, setting, FAILED, reason=reason)
                return Outcome(cell, FAILED, reason)
            ran.add(tuple(words))
    try:
        check_unchanged(before, file_states(before))
    except UserError as error:
        _keep(cell, setting, FAILED, reason=str(error))
        return Outcome(cell, FAILED, str(error))
    inputs = {"commands": _typed_commands(cell, setting), "hashes": hash_inputs(input_files(cell, setting))}
    results = [str(path) for path in result_files(cell, setting)]
    _keep(cell, setting, DONE, started=started, seconds=time.time() - started, results=results, inputs=inputs)
    return Outcome(cell, DONE)


def _changed_inputs(cell: Cell, setting: Setting, state: Mapping[str, Any]) -> list[str]:
    """Which inputs are others now than when a cell was run; none where an earlier version, which kept no hashes, ran
    it."""
    if state.get("inputs") is None:
        return []
    try:
        now = hash_inputs(input_files(cell, setting))
    except (UserError, OSError):  # reported when the cell runs
        return ["model"]
    return [name for name, found in now.items() if state["inputs"]["hashes"].get(name) != found]


def _commands_to_replace(cell: Cell, setting: Setting, state: Mapping[str, Any], merges: bool) -> list[list[str]]:
    """The commands of a cell that replace what is there, since its models or sets changed after it was run.

    Raises UserError where a merge of other models is in the cell's place that these commands did not make."""
    commands = cell_commands(cell, setting)
    inputs = state.get("inputs")
    was_run = inputs is not None and _as_compared(inputs["commands"]) == _as_compared(_typed_commands(cell, setting))
    replaces_merge = merges and holds_other_merge(cell, setting)
    if replaces_merge and not was_run:
        raise UserError(f"{setting.results_dir} holds this merge of other models; choose another --results_dir")
    changed = _changed_inputs(cell, setting, state) if was_run else []
    if not changed:
        return []
    log.info("%s: run again, replacing its results: another %s", cell.name, ", another ".join(changed))
    if cell.attacks:
        for path in result_files(cell, setting):
            path.unlink(missing_ok=True)
    asks = [] if cell.attacks else [commands[-1]]
    return [*asks, *([commands[0]] if replaces_merge else [])]


def run_command(words: Sequence[str], slot: dict[str, str], output: BinaryIO) -> str | None:
    """Run a command, whose words go to the file `output` as they come; returns why it failed, or None."""
    output.write(f"$ {shlex.join(shell_words(words))}\n".encode())
    output.flush()
    start = output.tell()
    # Unbuffered, so that lines stand in the log in the order in which they were written.
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **slot}
    options = {"cwd": ROOT, "stdout": output, "stderr": subprocess.STDOUT}
    with child_process(interpreter_words(words), environment, **options) as process:
        status = process.wait()
    return None if status == 0 else why_it_ended(status, Path(output.name), start)


def why_it_ended(status: int, log_file: Path, start: int) -> str:
    """In a line, why a command failed that ended with this `status` (negative: minus the signal that killed it) and
    wrote to `log_file` from byte `start` on: the error that it told, else its last line."""
    if status == -signal.SIGKILL:
        return "killed by SIGKILL; out of memory?"
    if status < 0:
        return f"killed by {SIGNALS.get(-status, f'signal {-status}')}"
    with open(log_file, "rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - LARGEST_ENDING))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    told = [line for line in lines if line.startswith(ERROR)] or [line for line in lines if line]
    return told[-1].removeprefix(ERROR) if told else f"ended with status {status} and no word"


def log_path(cell: Cell, setting: Setting) -> Path:
    return state_path(setting.results_dir, cell).with_suffix(".log")


def check_cells(cells: Sequence[Cell], setting: Setting) -> None:
    """Raise UserError, before anything runs, for a cell whose words make no sense."""
    for cell in cells:
        try:
            cell.check()
            cell_commands(cell, setting)
        except UserError as error:
            raise UserError(f"cell {cell.name}: {error}") from None


def _typed_commands(cell: Cell, setting: Setting) -> list[str]:
    return [shlex.join(shell_words(words)) for words in cell_commands(cell, setting)]


def _as_compared(commands: Sequence[str]) -> list[str]:
    """Commands without what changes no result."""
    return [re.sub(rf" --tensor_parallel_size \d+| {OVERWRITE}\b", "", command) for command in commands]


def _keep(cell: Cell, setting: Setting, status: str, **about) -> None:
    """Put on record what has become of a cell. Results that are there stay those of the commands that made them, until
    others have taken their place."""
    places = merge_places(cell, setting)
    commands, state = _typed_commands(cell, setting), read_state(setting.results_dir, cell)
    if status != DONE and results_there(cell, setting):
        commands = state.get("commands", [])
    if "inputs" in state:
        about = {"inputs": state["inputs"], **about}
    write_state(
        setting.results_dir,
        cell,
        commands,
        status=status,
        root=str(output_dir(cell, setting)),
        tasks_name=places.tasks,
        name=places.name,
        **about,
    )


def _keep_merge_record(cell: Cell, setting: Setting) -> None:
    """Copy the merge's record to where it outlives the weights."""
    record = merged_model(cell, setting) / RECORD_FILE
    kept = merge_places(cell, setting).kept_record()
    if record.is_file():
        with whole_file(kept) as copy:
            shutil.copyfile(record, copy)


def _delete_models(cell: Cell, setting: Setting) -> None:
    places = merge_places(cell, setting)
    for folder in (places.root / "save_merge_models" / places.tasks).glob(f"*/{places.name}"):
        remove_folder(folder)
