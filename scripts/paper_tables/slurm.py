"""Cells as a job array for Slurm: a task of the array is a merge and all that is asked of it."""

import argparse
import shlex
import shutil
import sys
from pathlib import Path

from scripts.paper_tables.commands import ROOT, Setting
from utils.whole_files import write_whole

FOLDER = "paper_jobs"


def write_job_array(options: argparse.Namespace, setting: Setting, number_of_jobs: int) -> Path:
    """Write the cells and the script that runs one merge's, numbered by Slurm; returns the script for sbatch."""
    folder = (ROOT / setting.results_dir / FOLDER).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    cells = folder / "cells.tsv"
    shutil.copyfile(options.cells, cells)
    words = [sys.executable, "-m", "scripts.paper_tables.run_cells", "--cells", str(cells)]
    words += ["--results_dir", str(setting.results_dir), "--backend", setting.backend]
    for name in ("models", "data_dir", "tensor_parallel_size"):
        if getattr(options, name) is not None:
            words += [f"--{name}", str(getattr(options, name))]
    if options.delete_merged_models:
        words.append("--delete_merged_models")
    gpus = "" if setting.is_tiny else f"#SBATCH --gres=gpu:{setting.tensor_parallel_size or 2}\n"
    script = folder / "jobs.sbatch"
    write_whole(
        script,
        f"#!/bin/bash\n"
        f"#SBATCH --job-name=paper_tables\n"
        f"#SBATCH --array=0-{number_of_jobs - 1}\n"
        f"#SBATCH --output={folder}/%a.out\n"
        f"#SBATCH --cpus-per-task=8\n"
        f"{gpus}"
        f"# Add what your cluster asks for: partition, account, time.\n"
        f"cd {shlex.quote(str(ROOT))}\n"
        f'{shlex.join(words)} --job "$SLURM_ARRAY_TASK_ID"\n',
    )
    return script
