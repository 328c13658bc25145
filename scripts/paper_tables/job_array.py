"""Write the cells of tables as a job array for Slurm."""

import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from scripts.paper_tables.cell_runs import ROOT, Setting
from scripts.paper_tables.cells import Cell
from scripts.paper_tables.runner import GPUS_OF_A_MODEL
from utils.whole_files import write_json, write_whole

JOBS = "paper_jobs"  # below the results folder


def write_job_array(cells: Sequence[Cell], jobs: int, setting: Setting, delete_merged_models: bool) -> Path:
    """Write the cells, and the sbatch script whose tasks run one of the `jobs` merges each; returns the script.

    Its name depends on its content, so that another array does not change the cells of one at work."""
    content = {"cells": [asdict(cell) for cell in cells]}
    options = ["--results_dir", str(setting.results_dir), "--backend", setting.backend]
    for name in ("models", "data_dir", "tensor_parallel_size"):
        value = getattr(setting, name)
        if value is not None:
            options += [f"--{name}", str(value)]
    if delete_merged_models:
        options.append("--delete_merged_models")
    tables = dict.fromkeys(table for cell in cells for table in cell.tables)
    digest = hashlib.sha256(json.dumps([options, content]).encode()).hexdigest()[:8]
    folder, name = (ROOT / setting.results_dir / JOBS).resolve(), f"{'_'.join(tables)}_{digest}"
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
