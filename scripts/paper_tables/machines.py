"""Where cells run: GPUs and cores of this machine, or a job array for Slurm."""

import hashlib
import importlib.util
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path

from scripts.paper_tables.cells import Cell
from scripts.paper_tables.commands import ROOT, Setting
from utils.cores import available_cores
from utils.errors import UserError
from utils.json_files import check_shape, read_json_object
from utils.whole_files import write_json, write_whole

GPUS_OF_A_MODEL = 2  # by default, if there are that many: 13 billion parameters on cards of 24 GB
JOBS = "paper_jobs"  # below the results folder


def visible_gpus() -> list[str]:
    """The ids of the NVIDIA GPUs that this process may use."""
    gpus = _nvidia_gpus()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return gpus
    # As CUDA reads it: an entry that is not a GPU, such as -1, ends the list.
    return list(takewhile(lambda name: _is_gpu(name, gpus), (name.strip() for name in visible.split(","))))


def _is_gpu(name: str, gpus: Sequence[str]) -> bool:
    return name in gpus or name.startswith(("GPU-", "MIG-")) or (not gpus and name.isdigit())


def _nvidia_gpus() -> list[str]:
    try:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return []


def tensor_parallel_size(given: int | None, backend: str, gpus: int) -> int | None:
    """The size that every command gets; None if the transformers engine generates. Raises UserError if it is `given`
    without effect."""
    if backend == "transformers":
        if given is not None:
            raise UserError(f"--tensor_parallel_size {given} has no effect with the transformers backend; remove it")
        return None
    if given is not None:
        return given
    if backend == "auto" and (gpus == 0 or importlib.util.find_spec("vllm") is None):
        return None
    return max(1, min(GPUS_OF_A_MODEL, gpus))


def job_slots(gpus: Sequence[str], gpus_per_job: int | None, one_core_jobs: bool) -> list[dict[str, str]]:
    """The environments of the jobs that run at a time. Each job has its own GPUs; models so small that most of the time
    goes into starting processes have a core each; otherwise there is one job.

    Raises UserError if a job needs more GPUs than there are."""
    if one_core_jobs:
        return [{"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} for _ in available_cores()]
    if not gpus or gpus_per_job is None:
        return [{}]
    if gpus_per_job > len(gpus):
        raise UserError(f"--tensor_parallel_size {gpus_per_job}: there are {len(gpus)} GPUs; give fewer")
    starts = range(0, len(gpus) - gpus_per_job + 1, gpus_per_job)
    return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[start : start + gpus_per_job])} for start in starts]


def write_job_array(jobs: Sequence[Sequence[Cell]], setting: Setting, delete_merged_models: bool) -> Path:
    """Write the cells, and the sbatch script whose tasks run one of the `jobs` each; returns the script.

    Its name depends on its content, so that another array does not change the cells of one at work."""
    cells = {"cells": [asdict(cell) for job in jobs for cell in job]}
    options = ["--results_dir", str(setting.results_dir), "--backend", setting.backend]
    for name in ("models", "data_dir", "tensor_parallel_size"):
        value = getattr(setting, name)
        if value is not None:
            options += [f"--{name}", str(value)]
    if delete_merged_models:
        options.append("--delete_merged_models")
    tables = dict.fromkeys(table for job in jobs for cell in job for table in cell.tables)
    digest = hashlib.sha256(json.dumps([options, cells]).encode()).hexdigest()[:8]
    folder, name = (ROOT / setting.results_dir / JOBS).resolve(), f"{'_'.join(tables)}_{digest}"
    listed, script = folder / f"{name}.json", folder / f"{name}.sbatch"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(listed, cells)
    words = [sys.executable, "-m", "scripts.paper_tables.run_cells", "--cells", str(listed), *options]
    gpus = "" if setting.is_tiny else f"#SBATCH --gres=gpu:{setting.tensor_parallel_size or GPUS_OF_A_MODEL}\n"
    write_whole(
        script,
        f"#!/bin/bash\n"
        f"#SBATCH --job-name=paper_tables\n"
        f"#SBATCH --array=0-{len(jobs) - 1}\n"
        f"#SBATCH --output={folder}/{name}_%a.out\n"
        f"#SBATCH --cpus-per-task=8\n"
        f"{gpus}"
        f"# Add the options of your cluster: partition, account, time.\n"
        f"cd {shlex.quote(str(ROOT))}\n"
        f'{shlex.join(words)} --job "$SLURM_ARRAY_TASK_ID"\n',
    )
    return script


def read_cells(path: Path) -> list[Cell]:
    """The cells of a job array."""
    remedy = "write it again with --slurm"
    cells = read_json_object(path, remedy).get("cells")
    check_shape(str(path), cells, list[Cell], remedy)
    return [Cell(**{**cell, "tables": tuple(cell["tables"])}) for cell in cells]
