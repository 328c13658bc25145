"""What the machine has, and how many jobs may share it."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.cores import available_cores


@dataclass(frozen=True)
class Machine:
    """`gpus`: names of those that may be used, `gpu_ids` their numbers. `free_disk` in bytes, where results go."""

    gpus: tuple[str, ...]
    gpu_ids: tuple[str, ...]
    cores: int
    free_disk: int


def find_machine(results_dir: Path) -> Machine:
    gpus = _nvidia_gpus()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        chosen = [number for number in visible.split(",") if number]
        gpus = {number: gpus.get(number, "GPU") for number in chosen}
    place = next(path for path in (results_dir, *results_dir.absolute().parents) if path.is_dir())
    return Machine(tuple(gpus.values()), tuple(gpus), len(available_cores()), shutil.disk_usage(place).free)


def job_slots(machine: Machine, gpus_per_job: int | None, one_core_jobs: bool) -> list[dict[str, str]]:
    """The environments of the jobs that run at a time: each has GPUs of its own; without GPUs, or for models so small
    that the start of a process takes longest, each has a core; else there is one job."""
    if one_core_jobs:
        return [{"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}] * machine.cores
    if not machine.gpu_ids or gpus_per_job is None:
        return [{}]
    groups = [machine.gpu_ids[i : i + gpus_per_job] for i in range(0, len(machine.gpu_ids), gpus_per_job)]
    whole = [group for group in groups if len(group) == gpus_per_job]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in whole] or [{}]


def _nvidia_gpus() -> dict[str, str]:
    """The names of NVIDIA GPUs by number; none where there is no driver."""
    command: Sequence[str] = ("nvidia-smi", "--query-gpu=index,name", "--format=csv,noheader")
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return dict(line.split(", ", 1) for line in listed.splitlines() if ", " in line)
