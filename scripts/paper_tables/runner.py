"""Run cells on the GPUs and cores of this machine, or write them as a job array for Slurm.

A job is a merge with all of its cells, so that it is merged once and its weights can then be deleted; or a fine-tune.
"""

import hashlib
import importlib.util
import json
import logging
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import repeat, takewhile
from pathlib import Path
from typing import BinaryIO

from model_merging_methods.merge_record import RECORD_FILE
from scripts.paper_tables.cell_runs import ROOT, CellRun, Command, Setting
from scripts.paper_tables.cells import DONE, FAILED, PLANNED, RUNNING, Cell, option_words, state_path
from utils.child_processes import child_process, interrupt_children
from utils.content_hashes import check_unchanged, file_states
from utils.errors import UserError
from utils.interrupts import INTERRUPTED
from utils.machine import available_cores
from utils.whole_files import Busy, locked, remove_folder, whole_file, write_json, write_whole

log = logging.getLogger(__name__)

GPUS_OF_A_MODEL = 2  # by default, if there are that many: 13 billion parameters on cards of 24 GB
ERROR = "error: "  # begins the line in which a script says why it stopped
SIGNALS = {one.value: one.name for one in signal.Signals}
ARRAYS = "paper_jobs"  # below the results folder
SEARCHED_BYTES = 1 << 16  # at the end of a log, for that line

Job = Sequence[CellRun]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a cell, with the `reason` if it failed."""

    cell: Cell
    status: str
    reason: str | None = None


def jobs_of_cells(cells: Sequence[Cell], setting: Setting) -> list[list[CellRun]]:
    """The cells by merge, in the order of each merge's first cell. Raises UserError if a cell is wrong."""
    jobs: dict[object, list[CellRun]] = {}
    for cell in cells:
        run = CellRun(cell, setting)
        try:
            jobs.setdefault(run.places, []).append(run)
        except UserError as error:
            raise UserError(f"cell {cell.name}: {error}") from None
    return list(jobs.values())


def visible_gpus() -> list[str]:
    """The ids of the NVIDIA GPUs that this process may use."""
    try:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        gpus = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        gpus = []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return gpus

    def is_gpu(name: str) -> bool:
        return name in gpus or name.startswith(("GPU-", "MIG-")) or (not gpus and name.isdigit())

    # As CUDA reads it: an entry that is not a GPU, such as -1, ends the list.
    return list(takewhile(is_gpu, (name.strip() for name in visible.split(","))))


def tensor_parallel_size(given: int | None, backend: str, gpus: int) -> int | None:
    """The size in every command; None with the transformers engine. Raises UserError if `given` has no effect."""
    if backend == "transformers" and given is not None:
        raise UserError(f"--tensor_parallel_size {given} has no effect with the transformers backend; remove it")
    if given is not None or backend == "transformers":
        return given
    if backend == "auto" and (gpus == 0 or importlib.util.find_spec("vllm") is None):
        return None
    return max(1, min(GPUS_OF_A_MODEL, gpus))


def job_slots(gpus: Sequence[str], gpus_per_job: int | None, one_core_jobs: bool) -> list[dict[str, str]]:
    """The environments of jobs that run in parallel. Each job has its own GPUs. Without GPUs there is one job, except
    for models so small that starting processes takes most of the time: these have a core each.

    Raises UserError if a job needs more GPUs than there are."""
    if one_core_jobs:
        return [{"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} for _ in available_cores()]
    if not gpus or gpus_per_job is None:
        return [{}]
    if gpus_per_job > len(gpus):
        raise UserError(f"--tensor_parallel_size {gpus_per_job}: there are {len(gpus)} GPUs; give fewer")
    starts = range(0, len(gpus) - gpus_per_job + 1, gpus_per_job)
    return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[start : start + gpus_per_job])} for start in starts]


def run_jobs(jobs: Sequence[Job], slots: Sequence[dict[str, str]], delete_merged_models: bool) -> list[Outcome]:
    """Run the jobs, one at a time in each of the `slots`: environment variables that give a job its part of the
    machine. A failure is reported and stops nothing else. Jobs that another process runs are waited for. Ctrl-C stops
    all; a rerun resumes."""
    for job in jobs:
        with suppress(Busy), locked(job[0].places.kept_record()):
            for run in job:
                if not run.is_done():
                    run.record(PLANNED)
    stopped = threading.Event()
    free: queue.Queue[dict[str, str]] = queue.Queue()
    for slot in slots:
        free.put(slot)
    busy: list[Job] = []

    def run_in_slot(job: Job, blocking: bool) -> list[Outcome]:
        slot = free.get()
        try:
            with locked(job[0].places.kept_record(), blocking):
                return run_job(job, slot, delete_merged_models, stopped)
        except Busy as error:
            log.info("%s", error)
            busy.append(job)
            return []
        finally:
            free.put(slot)

    pool = ThreadPoolExecutor(len(slots))
    try:
        outcomes = [*pool.map(run_in_slot, jobs, repeat(False))]
        if busy:
            log.info("waiting for the other process")
            outcomes += pool.map(run_in_slot, busy, repeat(True))
        return [outcome for of_job in outcomes for outcome in of_job]
    finally:
        stopped.set()
        interrupt_children()
        pool.shutdown(cancel_futures=True)


def run_job(job: Job, slot: dict[str, str], delete_merged_models: bool, stopped: threading.Event) -> list[Outcome]:
    """Run one merge's cells one by one, until `stopped` is set."""
    outcomes = []
    ran: set[str] = set()
    for run in job:
        if stopped.is_set():
            return outcomes
        if run.is_done():
            continue
        reason = run_cell(run, slot, ran)
        outcomes.append(Outcome(run.cell, DONE if reason is None else FAILED, reason))
        if reason is not None and stopped.is_set():
            return outcomes  # interrupted too
        log.info("%s: %s%s", outcomes[-1].status, run.cell.name, "" if reason is None else f": {reason}")
    if delete_merged_models:
        places = job[0].places
        for folder in (places.root / "save_merge_models" / places.tasks).glob(f"*/{places.name}"):
            remove_folder(folder)
    return outcomes


def run_cell(run: CellRun, slot: dict[str, str], ran: set[str]) -> str | None:
    """Run a cell and record its outcome; returns the reason if it failed. `ran`: as in `_run_commands`."""
    started = time.time()
    try:
        before = file_states(file for files in run.input_files().values() for file in files)
        replaced = _commands_to_replace(run, ran)
        run.record(RUNNING)
        _run_commands(run, slot, ran, replaced)
        check_unchanged(before, file_states(before))
    except (UserError, OSError) as error:
        run.record(FAILED, reason=str(error))
        return str(error)
    run.record(
        DONE,
        started=started,
        seconds=time.time() - started,
        results=[str(path) for path in run.result_files],
        runs=[command.data for command in run.commands],
        hashes=run.hash_inputs(),
        result_options=run.results(),
    )
    return None


def _commands_to_replace(run: CellRun, ran: set[str]) -> list[Command]:
    """The cell's commands that must replace existing results, because its models or sets changed since it ran.

    Raises UserError if the results folder has a merge of other models, which these commands did not make."""
    state, merge = run.state, run.commands[0]
    is_rerun = state is not None and state.hashes is not None and run.has_same_commands(state)
    replaces_merge = not run.cell.is_search and merge.text not in ran and run.holds_other_merge()
    if replaces_merge and not is_rerun:
        raise UserError(f"{run.setting.results_dir} holds this merge of other models; choose another --results_dir")
    changed = run.changed_inputs(state) if is_rerun else []
    if not changed:
        return []
    log.info("%s: runs again and replaces its results; changed: %s", run.cell.name, ", ".join(changed))
    if not run.cell.attacks and not run.cell.is_search:
        return [run.commands[-1], *([merge] if replaces_merge else [])]
    for path in run.result_files:
        path.unlink(missing_ok=True)
    return [merge] if replaces_merge else []


def _run_commands(run: CellRun, slot: dict[str, str], ran: set[str], replaced: Sequence[Command]) -> None:
    """Run a cell's commands, with their output in a log beside its state. Raises UserError for the first that fails.

    `ran`: commands that another cell of the same merge ran; this call adds its own. The merge command runs even if the
    model exists: the main job knows whether it is the same."""
    with open(state_path(run.setting.results_dir, run.cell).with_suffix(".log"), "wb") as output:
        for command in run.commands:
            if command.text in ran:
                continue
            reason = run_command(command, slot, output, overwrite=command in replaced)
            if (record := run.merged_model / RECORD_FILE).is_file():
                with whole_file(run.places.kept_record()) as copy:  # it outlives the weights
                    shutil.copyfile(record, copy)
            if reason is not None:
                raise UserError(reason)
            ran.add(command.text)


def run_command(command: Command, slot: dict[str, str], output: BinaryIO, overwrite: bool = False) -> str | None:
    """Run a command, with its output in the file `output`; returns the reason if it failed."""
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
    """Why a command failed, in one line: the signal that killed it (minus a negative `status`), else its error in
    `log_file` from byte `start` on, else its last line there."""
    if status == -signal.SIGKILL:
        return "killed by SIGKILL; out of memory?"
    if status == INTERRUPTED:
        return "interrupted"  # its log names the command of the cell alone
    if status < 0:
        return f"killed by {SIGNALS.get(-status, f'signal {-status}')}"
    with open(log_file, "rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - SEARCHED_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    last = [line for line in lines if line.startswith(ERROR)] or [line for line in lines if line]
    return last[-1].removeprefix(ERROR) if last else f"ended with status {status} and no message"


def write_job_array(cells: Sequence[Cell], jobs: int, setting: Setting, delete_merged_models: bool) -> Path:
    """Write the cells and an sbatch script in which each task runs one of the `jobs`; returns the script.

    The file names depend on the content, so that a new array does not change the cells of a running one."""
    content = {"cells": [asdict(cell) for cell in cells]}
    options = ["--results_dir", str(setting.results_dir), "--backend", setting.backend]
    for name in ("models", "data_dir", "tensor_parallel_size"):
        value = getattr(setting, name)
        if value is not None:
            options += [f"--{name}", str(value)]
    if delete_merged_models:
        options.append("--delete_merged_models")
    if setting.allow_code_execution:
        options.append("--allow_code_execution")
    options += option_words(setting.prompt_format.options())
    tables = dict.fromkeys(table for cell in cells for table in cell.tables)
    digest = hashlib.sha256(json.dumps([options, content]).encode()).hexdigest()[:8]
    folder, name = (ROOT / setting.results_dir / ARRAYS).resolve(), f"{'_'.join(tables)}_{digest}"
    listed, script = folder / f"{name}.json", folder / f"{name}.sbatch"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(listed, content)
    words = [sys.executable, "-m", "scripts.paper_tables.run_cells", "--cells", str(listed), *options]
    gpus = "" if setting.is_tiny else f"#SBATCH --gres=gpu:{setting.tensor_parallel_size or GPUS_OF_A_MODEL}\n"
    write_whole(
        script,
        f"#!/bin/bash\n"
        f"#SBATCH --job-name=paper_tables\n"
        f"#SBATCH --array=0-{jobs - 1}\n"
        f"#SBATCH --output={folder}/{name}_%a.out\n"
        f"#SBATCH --cpus-per-task=8\n"
        f"{gpus}"
        f"# Add the options of your cluster: partition, account, time.\n"
        f"cd {shlex.quote(str(ROOT))}\n"
        f'{shlex.join(words)} --job "$SLURM_ARRAY_TASK_ID"\n',
    )
    return script
