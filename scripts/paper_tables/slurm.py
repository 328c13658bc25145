"""Cells as a job array for Slurm: a task of the array is a merge and all that is asked of it."""

import hashlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.paper_tables.cell import Cell
from scripts.paper_tables.commands import ROOT, Setting
from scripts.paper_tables.machine import GPUS_OF_A_MODEL
from utils.whole_files import write_whole

FOLDER = "paper_jobs"


def write_job_array(listed: Path, jobs: Sequence[Sequence[Cell]], setting: Setting, delete_merged_models: bool) -> Path:
    """Write the cells that a script `listed`, and the script that runs one of its `jobs`, numbered by Slurm; returns
    the script for sbatch. Their names tell the content apart: an array at work keeps the cells that it was made of."""
    text = listed.read_text(encoding="utf-8")
    options = ["--results_dir", str(setting.results_dir), "--backend", setting.backend]
    for name in ("models", "data_dir", "tensor_parallel_size"):
        value = getattr(setting, name)
        if value is not None:
            options += [f"--{name}", str(value)]
    if delete_merged_models:
        options.append("--delete_merged_models")
    tables = dict.fromkeys(table for job in jobs for cell in job for table in cell.tables)
    name = f"{'_'.join(tables)}_{hashlib.sha256(f'{options}{text}'.encode()).hexdigest()[:8]}"
    folder = (ROOT / setting.results_dir / FOLDER).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    cells, script = folder / f"{name}.tsv", folder / f"{name}.sbatch"
    write_whole(cells, text)
    words = [sys.executable, "-m", "scripts.paper_tables.run_cells", "--cells", str(cells), *options]
    gpus = "" if setting.is_tiny else f"#SBATCH --gres=gpu:{setting.tensor_parallel_size or GPUS_OF_A_MODEL}\n"
    write_whole(
        script,
        f"#!/bin/bash\n"
        f"#SBATCH --job-name=paper_tables\n"
        f"#SBATCH --array=0-{len(jobs) - 1}\n"
        f"#SBATCH --output={folder}/{name}_%a.out\n"
        f"#SBATCH --cpus-per-task=8\n"
        f"{gpus}"
        f"# Add what your cluster asks for: partition, account, time.\n"
        f"cd {shlex.quote(str(ROOT))}\n"
        f'{shlex.join(words)} --job "$SLURM_ARRAY_TASK_ID"\n',
    )
    return script
