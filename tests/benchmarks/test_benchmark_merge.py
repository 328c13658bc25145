"""The benchmark of merging runs end to end, on a tiny shape."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="benchmarks read /proc")


def benchmark(*options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "benchmarks/benchmark_merge.py", "--parameters", "tiny", "--repeat", "1", *options]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize("models", [2, 5])
def test_each_method_has_a_row_and_its_rounds_are_kept(models, tmp_path):
    table = tmp_path / "table.md"
    methods = ["task arithmetic", "TIES, M3"]
    done = benchmark("--models", models, "--methods", *methods, "--output", table, "--work_dir", tmp_path / "work")
    assert done.returncode == 0, done.stderr
    assert table.read_text() in done.stdout
    rows = [line.split("|") for line in table.read_text().splitlines() if line.startswith("| ")][1:]
    assert [(row[1].strip(), row[2].strip()) for row in rows] == [
        (method, state) for state in ("cold", "warm") for method in methods
    ]
    cases = json.loads(table.with_suffix(".json").read_text())["cases"]
    sizes = {file.stat().st_size for file in (tmp_path / "work").rglob("*.safetensors")}
    assert sizes == set(), "the models are removed"
    for case in cases:
        (figures,) = case["rounds"]
        assert figures["wall"] > 0 and figures["own_memory"] > 1e6 and figures["read"] > figures["written"] / 2


def test_the_floor_shows_its_usage_in_one_line():
    script = "benchmark_floor.py"
    for words, status in ((["--help"], 0), ([], 1), (["out", "x", "y"], 1)):
        command = [sys.executable, f"benchmarks/{script}", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert (done.stdout + done.stderr).startswith(f"usage: python benchmarks/{script} ")
        assert (done.stdout + done.stderr).count("\n") == 1 and done.returncode == status


def test_mergekit_needs_two_models_and_warm_files(tmp_path):
    done = benchmark("--models", 3, "--vs", "mergekit", "--work_dir", tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: --vs") and done.stderr.count("\n") == 1
