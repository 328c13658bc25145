"""What the machine has, and how many jobs may share it."""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from utils.cores import available_cores
from utils.errors import UserError

GPUS_OF_A_MODEL = 2  # unless said otherwise, where there are as many: 13 billion parameters on cards of 24 GB


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
        # As CUDA reads it: what follows a number that is none, such as -1, does not count.
        chosen = takewhile(lambda name: _is_gpu(name, gpus), (name.strip() for name in visible.split(",")))
        gpus = {name: gpus.get(name, "GPU") for name in chosen}
    place = next(path for path in (results_dir, *results_dir.absolute().parents) if path.is_dir())
    return Machine(tuple(gpus.values()), tuple(gpus), len(available_cores()), shutil.disk_usage(place).free)


def tensor_parallel_size(given: int | None, backend: str, gpus: int) -> int | None:
    """The size that every command gets, whatever its script's own default; None where transformers completes the
    prompts, which has no use for one. Raises UserError for one that is `given` nevertheless."""
    if backend == "transformers":
        if given is not None:
            raise UserError(f"--tensor_parallel_size {given} has no use with the transformers backend; leave it out")
        return None
    if given is not None:
        return given
    if backend == "auto" and (gpus == 0 or importlib.util.find_spec("vllm") is None):
        return None
    return max(1, min(GPUS_OF_A_MODEL, gpus))


def job_slots(machine: Machine, gpus_per_job: int | None, one_core_jobs: bool) -> list[dict[str, str]]:
    """The environments of the jobs that run at a time: each has GPUs of its own; without GPUs, or for models so small
    that the start of a process takes longest, each has a core; else there is one job. Raises UserError where a job
    asks for more GPUs than there are."""
    if one_core_jobs:
        return [{"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}] * machine.cores
    if not machine.gpu_ids or gpus_per_job is None:
        return [{}]
    if gpus_per_job > len(machine.gpu_ids):
        raise UserError(f"--tensor_parallel_size {gpus_per_job}: there are {len(machine.gpu_ids)} GPUs; give fewer")
    groups = [machine.gpu_ids[i : i + gpus_per_job] for i in range(0, len(machine.gpu_ids), gpus_per_job)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in groups if len(group) == gpus_per_job]


def _is_gpu(name: str, gpus: dict[str, str]) -> bool:
    """Whether this part of CUDA_VISIBLE_DEVICES names a GPU; `gpus` is empty where the driver tells of none."""
    return name in gpus or name.startswith(("GPU-", "MIG-")) or (not gpus and name.isdigit())


def _nvidia_gpus() -> dict[str, str]:
    """The names of NVIDIA GPUs by number; none where there is no driver."""
    command: Sequence[str] = ("nvidia-smi", "--query-gpu=index,name", "--format=csv,noheader")
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return dict(line.split(", ", 1) for line in listed.splitlines() if ", " in line)
