"""The benchmark of whole tensors runs end to end, and methods need no more memory than they declare."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model_merging_methods.method import Sees
from model_merging_methods.methods import METHODS

ROOT = Path(__file__).parents[2]
SCRIPT = [sys.executable, "benchmarks/benchmark_whole_tensors.py"]
SLACK = 0.5  # tensors, for the libraries' own buffers

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="benchmarks read /proc")


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> Path:
    """Figures for a wide and a tall matrix."""
    path = tmp_path_factory.mktemp("figures") / "cpu.json"
    options = ["--shapes", "640x1760", "1760x640", "--repeats", "1", "--json", path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*SCRIPT, *map(str, options)], cwd=ROOT, env=environment, capture_output=True, check=True)
    return path


def test_no_method_needs_more_memory_than_it_declares(figures):
    results = json.loads(figures.read_text())["results"]
    assert {result["method"] for result in results} == {n for n, m in METHODS.items() if m.sees is Sees.TENSOR}
    for result in results:
        (m, n), k = result["shape"], result["models"]
        declared = METHODS[result["method"]].memory(m, n, k) / (m * n)
        assert result["memory"] <= declared + SLACK, result


def test_tables_are_made_from_files_of_figures(figures, tmp_path):
    table = tmp_path / "table.md"
    subprocess.run([*SCRIPT, "--tables", figures, figures, "--output", table], cwd=ROOT, check=True)
    lines = table.read_text().splitlines()
    head = "| method | matrix | CPU, seconds | CPU, memory | CPU, seconds | CPU, memory |"
    assert lines[lines.index(head) + 2].startswith("| ace | 640 × 1760 | ")
    assert sum("Llama-2-13B, CPU: 160 × " in line for line in lines) == 2 * len(
        {n for n, m in METHODS.items() if m.sees is Sees.TENSOR}
    )
