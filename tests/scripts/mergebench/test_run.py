"""MergeBench as a user runs it."""

import importlib.util
import json
import shutil
from dataclasses import replace

import pytest

from scripts.mergebench.plan import BenchSetting, steps_of_base
from scripts.mergebench.run import build_parser, main, record_path, run_steps, setting_of_options
from scripts.mergebench.suite import FULL
from scripts.paper_tables.cell_runs import ROOT
from tests.commands import run_here
from tests.scripts.paper_tables.support import run_script
from utils.whole_files import write_json

NEEDS_LM_EVAL = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason='run `pip install -e ".[lm-eval]"` for this test'
)


def test_dry_run_prints_commands_disk_and_hours_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFETY_EVAL_DIR", str(tmp_path))
    done = run_script("mergebench", "--bases", "Llama-3.1-8B", "--dry_run", "--results_dir", tmp_path / "results")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum("-m model_merging_methods merge" in line for line in lines) == 6
    assert sum("-m inference_llms" in line for line in lines) == 1 + 4 + 6
    assert sum("evaluation/eval.py" in line for line in lines) == 1 + 1 + 6
    assert "math=MergeBench/Llama-3.1-8B_math" in done.stdout
    assert "# Llama-3.1-8B/math/tasks: download 16.1 GB" in done.stdout
    assert "25 of 25 steps to run: download 96.4 GB, write 96.4 GB" in done.stdout
    assert " h of tasks" in lines[-3]
    assert not (tmp_path / "results").exists()


def test_a_dry_run_without_safety_eval_counts_no_safety_steps(tmp_path, monkeypatch):
    monkeypatch.delenv("SAFETY_EVAL_DIR", raising=False)
    done = run_here(main, ["--bases", "Llama-3.1-8B", "--dry_run", "--results_dir", tmp_path])
    assert "no safety sets: set SAFETY_EVAL_DIR to the folder" in done.stdout
    assert "evaluation/eval.py" not in done.stdout
    assert "17 of 17 steps to run: download 96.4 GB, write 96.4 GB" in done.stdout


@pytest.mark.parametrize(("option", "name"), [("--bases", "Llama-4"), ("--methods", "tie")])
def test_unknown_names_are_reported_in_one_line(option, name):
    done = run_here(main, [option, name, "--dry_run"])
    assert done.returncode == 2
    assert done.stderr.splitlines() == [done.stderr.strip()]
    assert f"{option} {name}: choose from" in done.stderr


def test_a_dry_run_knows_finished_steps_and_their_time(tmp_path):
    words = ["--bases", "gemma-2-2b", "--methods", "dare", "task_arithmetic", "--results_dir", tmp_path, "--dry_run"]
    before = run_here(main, words).stdout.splitlines()
    place = before.index(next(line for line in before if line.startswith("# gemma-2-2b/dare/merge")))
    (tmp_path / "steps").mkdir()
    record = {"command": before[place + 1], "seconds": 77.0, "peak_bytes": 1}
    (tmp_path / "steps" / "gemma-2-2b_dare_merge.json").write_text(json.dumps(record))
    after = run_here(main, words).stdout
    assert "gemma-2-2b/dare/merge" not in after
    assert "# gemma-2-2b/task_arithmetic/merge: download 5.2 GB, write 5.2 GB, about 77 s of merging" in after


def test_a_step_runs_again_after_a_file_of_its_sets_changed(tmp_path):
    data = shutil.copytree(ROOT / "scripts/tiny_zoo/data", tmp_path / "data")
    words = ["--models", "tiny", "--methods", "dare", "--data_dir", data, "--results_dir", tmp_path]
    setting = setting_of_options(build_parser().parse_args(list(map(str, words))))
    step = next(step for step in steps_of_base(setting.suite.bases[0], setting) if step.name == "tiny/math/tasks")
    write_json(setting.folder(step.base, step.subject) / "save_scores" / "math.json", {})
    write_json(record_path(step, setting), {"command": step.text, "inputs": setting.inputs, "seconds": 1.0})
    assert step.name not in run_here(main, [*words, "--dry_run"]).stdout
    next(data.glob("*.jsonl")).touch()
    assert step.name in run_here(main, [*words, "--dry_run"]).stdout


def test_after_a_failed_merge_only_its_tasks_do_not_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    base, methods = FULL.bases[0], {name: FULL.methods[name] for name in ("dare", "ties")}
    suite = replace(FULL, bases=(base,), methods=methods)
    setting = BenchSetting(suite, False, tmp_path / "results", "transformers")
    steps = [step for step in steps_of_base(base, setting) if step.subject == "dare"]
    steps += [step for step in steps_of_base(base, setting) if step.subject == "coding"]
    with caplog.at_level("INFO"):
        failed = run_steps(steps, setting, delete_merged_models=False)
    assert failed == steps
    merge, tasks, coding = caplog.messages
    assert merge.startswith("1 of 3, Llama-3.2-3B/dare/merge: meta-llama/Llama-3.2-3B: no such folder here")
    assert tasks == "2 of 3, Llama-3.2-3B/dare/tasks: its merge failed"
    assert "MergeBench/Llama-3.2-3B_coding: no such folder here, and not available from the hub" in coding


@NEEDS_LM_EVAL
def test_the_tiny_suite_runs_resumes_and_makes_its_table(tmp_path):
    words = ["--models", "tiny", "--methods", "task_arithmetic", "--results_dir", tmp_path, "--delete_merged_models"]
    done = run_script("mergebench", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "tables" / "mergebench.json").read_text())["rows"]
    by_subject = {row["subject"]: row for row in rows}
    assert [*by_subject] == ["base", "specialists", "task_arithmetic"]
    merge = by_subject["task_arithmetic"]
    assert merge["compared_domains"] == ["instruction", "math"]  # programs need --allow_code_execution
    assert by_subject["base"]["relative"]["value"] < 0.5 < merge["relative"]["value"] < 1
    assert merge["seconds"] > 0
    assert merge["peak_bytes"] > 1e8
    assert not [*tmp_path.rglob("save_merge_models")]

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "steps").glob("*.json")}
    lost = tmp_path / "steps" / "tiny_math_tasks.json"
    lost.unlink()
    without_scores = tmp_path / "steps" / "tiny_instruction_tasks.json"
    shutil.rmtree(tmp_path / "tiny" / "instruction" / "save_scores")
    again = run_script("mergebench", *words)
    assert again.returncode == 0, again.stderr
    assert "3 of 6, tiny/math/tasks: done" in again.stdout
    assert {path for path, time in times.items() if path.stat().st_mtime_ns != time} == {lost, without_scores}
