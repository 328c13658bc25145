"""What the tests of the paper's tables share: the shell scripts run as a user runs them, and tables read again."""

import csv
import os
import subprocess
import sys
from pathlib import Path

from tests.inference_llms.support import ROOT

SCRIPTS = ROOT / "scripts" / "paper"
TABLES = ("performance", "dare", "ood", "adversarial", "alpha")


def run_script(script: Path, *options: object, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHON": sys.executable, **variables}
    command = ["bash", str(script), *map(str, options)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def read_scores(results_dir: Path) -> list[dict[str, str]]:
    with open(results_dir / "tables" / "scores.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
