"""Run the shell scripts as a user does, and read their tables."""

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.inference_llms.support import ROOT
from utils.model_folders import FINETUNED_MODELS, PRETRAINED_MODEL

SCRIPTS = ROOT / "scripts" / "paper"
ZOO = ROOT / "scripts" / "tiny_zoo"
MERGE = {"merge_instruct": True, "merge_code": True, "merging_method_name": "average_merging"}
TINY_MODELS = {PRETRAINED_MODEL: "base", **{name: role for role, name in FINETUNED_MODELS.items()}}  # by paper's name
TYPOS = {"load_model_path": "MERGED", "evaluate_task": "typos"}


def run_script(name: str, *options: object, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHON": sys.executable, **variables}
    command = ["bash", str(SCRIPTS / f"{name}.sh"), *map(str, options)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def read_scores(results_dir: Path, **wanted: str) -> list[dict[str, Any]]:
    """The rows of scores.csv with these values."""
    with open(results_dir / "tables" / "scores.csv", encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if all(row[name] == value for name, value in wanted.items())]
