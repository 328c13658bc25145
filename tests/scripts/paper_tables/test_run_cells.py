"""Tables run on the tiny models from the shell; dry runs, job arrays, and wrong options."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from scripts.make_tables import main as make_tables
from scripts.paper_tables.cells import LIVEBENCH, MAIN_JOB, Cell
from tests.inference_llms.support import ROOT, pass_at_1
from tests.scripts.paper_tables.support import MERGE, SCRIPTS, TYPOS, read_scores, run_script

TASKS = {"end_index": 6, "tasks": ["alpaca_eval", "gsm8k", "human_eval", "mbpp"]}
CELLS = [
    Cell(("performance",), MERGE, options=TASKS),
    Cell(("performance",), {**MERGE, "mixup": True, "alpha": 0.5, "seed": 1}, options=TASKS),
    Cell(("performance",), MERGE, options={**TASKS, "start_index": 70}),
    Cell(("performance",), MERGE, LIVEBENCH, {**TYPOS, "livebench_release": "2024-11-25"}),
]


@pytest.fixture(scope="module")
def results(first_run) -> Path:
    return first_run[0]


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cells") / "cells.json"
    path.write_text(json.dumps({"cells": list(map(asdict, CELLS))}))
    return path


@pytest.fixture(scope="module")
def first_run(cells):
    """The results of four cells, one of which cannot run, and the finished process."""
    results = cells.parent / "results"
    options = ["--results_dir", results, "--allow_code_execution", "--delete_merged_models"]
    return results, run_script("run", "--cells", cells, "--models", "tiny", *options)


def test_a_failed_cell_stops_no_other_and_is_reported_at_the_end(first_run):
    results, done = first_run
    assert done.returncode == 2
    assert "failed, 1 cells: --end_index must be larger than --start_index" in done.stdout
    assert done.stderr.startswith("error: some cells failed")
    assert {row["status"] for row in read_scores(results)} == {"ok"}
    for name in ("performance.png", "performance.svg", "robustness.png"):
        assert (results / "figures" / name).stat().st_size > 1000


def test_merged_weights_are_deleted_and_records_stay(results):
    assert not list(results.rglob("*.safetensors"))
    assert len(list((results / "merge_records").rglob("*.json"))) == 2


def test_each_score_has_its_commands_merge_record_and_interval(results):
    scores = read_scores(results)
    assert {row["dataset"] for row in scores} == {"AlpacaEval", "GSM8K", "HumanEval", "MBPP", "LiveBench-TypoFixing"}
    for row in scores:
        record = json.loads(Path(row["merge_record"]).read_text())
        assert record["fingerprint"] == row["fingerprint"]
        assert row["inputs"] == "instruct + code"
        assert shlex.split(row["command"])[0] == "python" and shlex.split(row["merge_command"])[0] == "python"
        assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
    drawn = read_scores(results, mixup="True")
    assert {(row["alpha"], row["seed"]) for row in drawn} == {("0.5", "1")}
    assert all(len(row["ratios"].split()) == 2 for row in drawn)


def test_the_command_of_a_score_gives_the_same_value(results, tmp_path):
    (row,) = read_scores(results, dataset="GSM8K", mixup="True")
    words = shlex.split(row["command"])
    assert words[-2] == "--output_dir"
    again = subprocess.run(
        [sys.executable, *words[1:-1], tmp_path / "again"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    make_tables([str(tmp_path / "again")])
    (same,) = read_scores(tmp_path / "again", dataset="GSM8K")
    assert (same["value"], same["fingerprint"]) == (row["value"], row["fingerprint"])
    assert same["command"].split(" --output_dir ")[0] == row["command"].split(" --output_dir ")[0]


def test_cells_that_are_done_are_skipped(results, cells):
    before = {path: path.stat().st_mtime_ns for path in results.rglob("save_raw_generations/**/*.jsonl")}
    options = ("--cells", cells, "--models", "tiny", "--results_dir", results)
    done = run_script("run", *options, "--allow_code_execution")
    assert "4 cells: 0 done now, 3 before, 1 failed" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    planned = run_script("run", *options, "--dry_run").stdout
    assert planned.count("# done: ") == 3 and "1 cells of 1 models to run" in planned
    assert re.search(r"about \d+ s for 1 of them, from cells that ran before", planned)


@pytest.mark.parametrize("dataset", ["HumanEval", "MBPP"])
def test_the_evaluator_gives_the_value_in_the_table(results, dataset):
    (row,) = read_scores(results, dataset=dataset, mixup="False")
    assert "accelerate" not in row["evaluator_command"]
    assert 100 * pass_at_1(row["evaluator_command"]) == pytest.approx(float(row["value"]))


def dry_run(name: str, *options: object, **variables: str) -> list[str]:
    done = run_script(name, "--dry_run", *options, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_format_of_prompts_reaches_every_command_that_runs_a_model(tmp_path):
    options = ("--prompt_format", "chat", "--system_prompt", "be brief", "--thinking", "off")
    lines = dry_run("all", "--models", "tiny", "--results_dir", tmp_path / "results", *options, SEEDS="0")
    commands = [line for line in lines if line.startswith("python ")]
    for command in commands:
        given = "--prompt_format chat --system_prompt 'be brief' --thinking off" in command
        assert given != ("--merge_only" in command)


def test_a_dry_run_prints_every_command_and_leaves_nothing(tmp_path):
    lines = dry_run("all", "--models", "tiny", "--results_dir", tmp_path / "results", SEEDS="0 1")
    commands = [line for line in lines if line.startswith("python ")]
    assert sum(MAIN_JOB in line for line in commands) > 50
    assert sum("ood_robust_inference.py" in line for line in commands) == 9
    assert sum("--attack_method bertattack" in line and "--mask_lm scripts/tiny_zoo" in line for line in commands) == 18
    assert lines[-2].startswith("104 cells of ") and lines[-1].startswith("no time estimate for 104 of them")
    assert list(tmp_path.iterdir()) == []


def test_every_command_on_an_engine_has_the_number_of_gpus():
    lines = dry_run("ood", "--backend", "vllm", SEEDS="0", CUDA_VISIBLE_DEVICES="GPU-5a")
    commands = [line for line in lines if line.startswith("python ")]
    assert len(commands) == 12
    assert all(("--tensor_parallel_size 1 " in line) == ("--merge_only" not in line) for line in commands)


def test_job_arrays_have_a_task_for_each_merge_and_do_not_share_files(tmp_path):
    for table in ("performance", "alpha", "performance"):
        done = run_script(table, "--slurm", "--results_dir", tmp_path, "--backend", "vllm", SEEDS="0 1")
        assert done.returncode == 0, done.stderr
        text = Path(done.stdout.splitlines()[0].removeprefix("sbatch ")).read_text()
        assert "--gres=gpu:2\n" in text and "--tensor_parallel_size 2 " in text and str(ROOT) in text
    alpha, performance = sorted((tmp_path / "paper_jobs").glob("*.sbatch"))
    assert alpha.name.startswith("alpha_") and performance.name.startswith("performance_")
    assert "#SBATCH --array=0-12\n" in alpha.read_text()  # one without M3, two draws at each of five α, two fine-tunes
    assert subprocess.run(["bash", "-n", alpha], check=False).returncode == 0


def test_a_task_of_a_job_array_runs_its_cells(tmp_path):
    sbatch = tmp_path / "sbatch"
    sbatch.write_text('#!/bin/sh\nSLURM_ARRAY_TASK_ID=1 exec bash "$1"\n')
    sbatch.chmod(0o755)
    listed, results = tmp_path / "cells.json", tmp_path / "results"
    cells = [
        Cell(("alpha",), {**MERGE, "mixup": True, "seed": seed}, options={**TASKS, "tasks": ["gsm8k"]})
        for seed in (0, 1)
    ]
    listed.write_text(json.dumps({"cells": list(map(asdict, cells))}))
    written = run_script("run", "--cells", listed, "--models", "tiny", "--slurm", "--results_dir", results)
    words = written.stdout.splitlines()[0].split()
    submitted = subprocess.run([sbatch, *words[1:]], capture_output=True, text=True, check=False)
    assert "1 cells: 1 done now, 0 before, 0 failed" in submitted.stdout, submitted.stderr
    make_tables([str(results)])
    assert [row["seed"] for row in read_scores(results)] == ["1"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--models", "no/such/folder"), "--models no/such/folder"),
        (("--tensor_parallel_size", "2", "--backend", "transformers"), "--tensor_parallel_size 2 has no effect"),
        (("--models", "tiny", "--job", "99"), "--job 99: there are 18 models"),
        (("--models", "tiny", "--prompt_format", "chat"), "has no chat template"),
        ({"SEEDS": "0 x"}, "SEEDS=0 x: 'x' is not a whole number"),
        ({"PYTHON": "no-python"}, "PYTHON=no-python: no such"),
    ],
)
def test_a_wrong_option_or_variable_is_one_line(wrong, message):
    done = run_script("alpha", **wrong) if isinstance(wrong, dict) else run_script("alpha", *wrong)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_paths_are_relative_to_the_working_folder(tmp_path):
    (tmp_path / "models").mkdir()
    command = ["bash", SCRIPTS / "alpha.sh", "--models", "models", "--data_dir", "sets", "--dry_run"]
    environment = {**os.environ, "PYTHON": sys.executable, "SEEDS": "0"}

    def first_command(*options):
        words = [*command, *options]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return next(line for line in done.stdout.splitlines() if line.startswith("python "))

    first = first_command("--results_dir", "out")
    assert f"--models_dir {tmp_path}/models --data_dir {tmp_path}/sets " in first
    assert first.endswith(f"--output_dir {tmp_path}/out")
    assert first_command().endswith("--output_dir paper_results")
    assert first_command("--results_dir", ROOT / "paper_results").endswith("--output_dir paper_results")


def test_an_interpreter_is_found_by_its_name(tmp_path):
    program = tmp_path / "my-python"
    program.write_text(f'#!/bin/sh\ntouch {tmp_path}/used\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    dry_run("alpha", PYTHON="my-python", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (tmp_path / "used").exists()
