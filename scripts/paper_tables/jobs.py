"""Running cells: a job is a merge and all that tables ask of it, so that it is made once and its weights can go."""

import logging
import os
import queue
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from model_merging_methods.merge_record import RECORD_FILE
from scripts.paper_tables.cell import Cell, read_state, state_path, write_state
from scripts.paper_tables.commands import (
    ROOT,
    Setting,
    cell_commands,
    commands_to_run,
    interpreter_words,
    kept_record,
    merge_places,
    merged_model,
    output_dir,
    result_files,
    shell_words,
)
from utils.errors import UserError

log = logging.getLogger(__name__)

# What a cell may come to.
PLANNED, RUNNING, DONE, FAILED = "planned", "running", "done", "failed"


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
    """Whether a cell was run with these very commands and its results are still there."""
    state = read_state(setting.results_dir, cell)
    return (
        state.get("status") == DONE
        and state.get("commands") == [shlex.join(shell_words(words)) for words in cell_commands(cell, setting)]
        and all(path.is_file() for path in result_files(cell, setting))
    )


def run_jobs(
    jobs: Sequence[Sequence[Cell]], setting: Setting, slots: Sequence[dict[str, str]], delete_merged_models: bool
) -> list[Outcome]:
    """Run the jobs, as many at a time as there are `slots`: environment variables that say what a job may use of the
    machine. What fails is told and stops nothing else. Ctrl-C stops all; what is on record is taken up again."""
    for job in jobs:
        for cell in job:
            if not is_done(cell, setting):
                _keep(cell, setting, PLANNED)
    stopped = threading.Event()
    free: queue.Queue[dict[str, str]] = queue.Queue()
    for slot in slots:
        free.put(slot)

    def run(job: Sequence[Cell]) -> list[Outcome]:
        slot = free.get()
        try:
            return run_job(job, setting, slot, delete_merged_models, stopped)
        finally:
            free.put(slot)

    pool = ThreadPoolExecutor(len(slots))
    try:
        return [outcome for outcomes in pool.map(run, jobs) for outcome in outcomes]
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


def run_job(
    job: Sequence[Cell],
    setting: Setting,
    slot: dict[str, str],
    delete_merged_models: bool,
    stopped: threading.Event,
) -> list[Outcome]:
    """Run one merge's cells in turn, until `stopped` is set."""
    outcomes = []
    for cell in job:
        if stopped.is_set():
            return outcomes
        if is_done(cell, setting):
            continue
        outcome = run_cell(cell, setting, slot)
        outcomes.append(outcome)
        told = "" if outcome.reason is None else f": {outcome.reason}"
        log.info("%s: %s%s", outcome.status, cell.name, told)
    if delete_merged_models:
        _delete_models(job[0], setting)
    return outcomes


def run_cell(cell: Cell, setting: Setting, slot: dict[str, str]) -> Outcome:
    """Run a cell's commands, up to the first that fails; their output goes to a log beside its state."""
    _keep(cell, setting, RUNNING)
    started = time.time()
    with open(log_path(cell, setting), "w", encoding="utf-8") as output:
        for words in commands_to_run(cell, setting):
            reason = run_command(words, slot, output)
            _keep_merge_record(cell, setting)
            if reason is not None:
                _keep(cell, setting, FAILED, reason=reason)
                return Outcome(cell, FAILED, reason)
    results = [str(path) for path in result_files(cell, setting)]
    _keep(cell, setting, DONE, started=started, seconds=time.time() - started, results=results)
    return Outcome(cell, DONE)


def run_command(words: Sequence[str], slot: dict[str, str], output) -> str | None:
    """Run a command; returns what its last line says where it failed."""
    output.write(f"$ {shlex.join(shell_words(words))}\n")
    output.flush()
    environment = {**os.environ, **slot}
    done = subprocess.run(
        interpreter_words(words),
        cwd=ROOT,
        env=environment,
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    output.write(done.stderr)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else f"ended with status {done.returncode} and no word"


def log_path(cell: Cell, setting: Setting) -> Path:
    return state_path(setting.results_dir, cell).with_suffix(".log")


def check_cells(cells: Sequence[Cell], setting: Setting) -> None:
    """Raise UserError, before anything runs, for a cell whose words make no sense."""
    for cell in cells:
        try:
            cell_commands(cell, setting)
        except UserError as error:
            raise UserError(f"cell {cell.name}: {error}") from None


def _keep(cell: Cell, setting: Setting, status: str, **about) -> None:
    places = merge_places(cell, setting)
    commands = [shell_words(words) for words in cell_commands(cell, setting)]
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
    kept = kept_record(merge_places(cell, setting))
    if record.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(record, kept)


def _delete_models(cell: Cell, setting: Setting) -> None:
    places = merge_places(cell, setting)
    for folder in (places.root / "save_merge_models" / places.tasks).glob(f"*/{places.name}"):
        shutil.rmtree(folder)
