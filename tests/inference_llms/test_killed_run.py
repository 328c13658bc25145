"""A run of a real model from the command line, killed while it generates, and finished by the same command."""

import os
import signal
import subprocess
import sys
import time

from tests.inference_llms.support import ROOT, read_json_lines, run_command, run_command_here

ZOO = ROOT / "scripts" / "tiny_zoo"


def options(out):
    model = ["--load_model_path", ZOO / "math", "--backend", "transformers", "--tensor_parallel_size", 1]
    return [*model, "--tasks", "gsm8k", "MATH", "--data_dir", ZOO / "data", "--output_dir", out]


def test_the_same_command_finishes_a_killed_run_with_the_same_rows_and_scores(tmp_path):
    undisturbed = run_command_here(*options(tmp_path / "undisturbed"))
    assert undisturbed.returncode == 0, undisturbed.stderr

    raw = "save_raw_generations/single_model/math/gsm8k.jsonl"
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "inference_llms", *map(str, options(killed))]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        patience = time.monotonic() + 120
        while not ((killed / raw).is_file() and (killed / raw).stat().st_size):
            assert child.poll() is None and time.monotonic() < patience
            time.sleep(0.005)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()

    finished = run_command(*options(killed))
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.replace("/killed/", "/undisturbed/") == undisturbed.stdout

    def rows(folder):
        kept = sorted(read_json_lines(folder / raw), key=lambda row: row["id"])
        return [{name: value for name, value in row.items() if name != "time"} for row in kept]

    assert rows(killed) == rows(tmp_path / "undisturbed")
