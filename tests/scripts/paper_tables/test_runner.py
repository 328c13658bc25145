"""Run cells: which count as done, which are replaced, failures, Ctrl-C, GPUs and cores."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file, save_file

from inference_llms.__main__ import build_parser as inference_parser
from merge_llms_instruct_math_code import build_parser as main_job_parser
from ood_robust_inference import build_parser as livebench_parser
from promptbench.run_attacks import build_parser as attack_parser
from promptbench.sst2 import TASK as SST2
from scripts.make_tables import main as make_tables
from scripts.paper_tables.cell_runs import CellRun, Command, Setting
from scripts.paper_tables.cells import (
    ALONE,
    DONE,
    FAILED,
    LIVEBENCH,
    MAIN_JOB,
    SEARCH,
    TABLES,
    Cell,
    cells_of_tables,
    state_path,
)
from scripts.paper_tables.run_cells import measured_seconds
from scripts.paper_tables.runner import (
    job_slots,
    jobs_of_cells,
    run_command,
    run_job,
    run_jobs,
    tensor_parallel_size,
    visible_gpus,
)
from scripts.search_mixup import build_parser as search_parser
from tests.inference_llms.support import ROOT
from tests.scripts.paper_tables.support import MERGE, TINY_MODELS, TYPOS, ZOO, read_scores
from utils.errors import UserError
from utils.model_folders import FINETUNED_MODELS
from utils.whole_files import locked

CELL = Cell(("ood",), MERGE, LIVEBENCH, {**TYPOS, "end_index": 2})
PAPER = Setting(Path("paper_results"), None, None, "auto", None)


def models_folder(folder: Path, instruct: str) -> str:
    """Tiny models under the paper's names; the instruct model is the one of this name."""
    folder.mkdir()
    for name, model in TINY_MODELS.items():
        (folder / name).symlink_to(ZOO / (instruct if model == "instruct" else model))
    return str(folder)


def run_cell(setting: Setting, *cells: Cell) -> list:
    return run_job([CellRun(cell, setting) for cell in cells or [CELL]], {}, False, threading.Event())


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Setting:
    """The setting in which the cell has run."""
    folder = tmp_path_factory.mktemp("running")
    models = models_folder(folder / "A", "instruct")
    setting = Setting(folder / "results", models, ZOO.relative_to(ROOT) / "data", "transformers", None)
    (outcome,) = run_cell(setting)
    assert (outcome.status, outcome.reason) == (DONE, None)
    return setting


@pytest.fixture
def done(first, tmp_path) -> Setting:
    """The same with a copy of the results folder for a test to damage."""
    results = tmp_path / "results"
    shutil.copytree(first.results_dir, results)
    for path in (*results.rglob("*.json"), *results.rglob("*.jsonl")):
        path.write_text(path.read_text().replace(str(first.results_dir), str(results)))
    return replace(first, results_dir=results)


def is_done(setting: Setting) -> bool:
    return CellRun(CELL, setting).is_done()


def scores_file(setting: Setting) -> Path:
    return CellRun(CELL, setting).places.scores()


def commands_of_scores(results_dir: Path) -> list[str]:
    make_tables([str(results_dir)])
    return [row["command"] for row in read_scores(results_dir, status="ok")]


@pytest.mark.parametrize("models", [None, "tiny"])
def test_every_command_is_one_that_its_script_accepts(models, tmp_path):
    parsers = {MAIN_JOB: main_job_parser(), LIVEBENCH: livebench_parser(), SEARCH: search_parser()}
    parsers[ALONE] = inference_parser()
    setting = Setting(tmp_path, models, None, "auto", None, allow_code_execution=models is None)
    jobs = jobs_of_cells(cells_of_tables([*TABLES], [0, 1]), setting)
    assert len({job[0].places for job in jobs}) == len(jobs)  # no two jobs write to one place
    for command in (command for job in jobs for run in job for command in run.commands):
        words = command.words[command.words.index(command.script) + 1 :]
        parsers.get(command.script, attack_parser(SST2)).parse_args(words)
        assert shlex.split(command.text) == ["python", *command.words]


def test_a_search_runs_the_tasks_that_it_can_score():
    cell = next(cell for cell in cells_of_tables(["methods"], [0]) if len(cell.tasks) == 5)
    allowed = replace(PAPER, allow_code_execution=True)
    assert CellRun(cell, PAPER).tasks == ["gsm8k", "MATH"]
    assert CellRun(cell, allowed).tasks == ["gsm8k", "MATH", "human_eval", "mbpp"]
    assert CellRun(cell, replace(allowed, models="tiny")).tasks == cell.tasks


def test_a_wrong_cell_is_named_before_anything_runs():
    with pytest.raises(UserError, match=r"cell merge_instruct_merge_code.*scaling_coefficient_3.*: .*average_merging"):
        jobs_of_cells([Cell((), {**MERGE, "scaling_coefficient": 3.0})], PAPER)


@pytest.mark.parametrize("weights_exist", [True, False])
def test_results_are_never_listed_under_a_command_on_other_models(done, tmp_path, weights_exist):
    (command,) = commands_of_scores(done.results_dir)
    other = replace(done, models=models_folder(tmp_path / "B", "math"))
    if not weights_exist:
        shutil.rmtree(done.results_dir / "save_merge_models")
    (outcome,) = run_cell(other)
    assert outcome.status == FAILED and "holds this merge of other models" in outcome.reason
    assert commands_of_scores(done.results_dir) == [command]
    assert bool(list(done.results_dir.rglob("*.safetensors"))) == weights_exist


def test_a_job_merges_once(done):
    other = replace(CELL, options={**TYPOS, "end_index": 3})
    shutil.rmtree(done.results_dir / "paper_cells")
    assert [outcome.status for outcome in run_cell(done, CELL, other)] == [DONE, DONE]
    logs = [state_path(done.results_dir, cell).with_suffix(".log").read_text() for cell in (CELL, other)]
    assert ["already merged" in text for text in logs] == [True, False]


def test_results_keep_the_command_that_made_them_if_another_fails(done, tmp_path):
    made_by = CellRun(CELL, done).state.commands
    elsewhere = replace(done, data_dir=tmp_path / "nowhere")
    (outcome,) = run_cell(elsewhere)
    state = CellRun(CELL, elsewhere).state
    assert (outcome.status, state.status, state.commands) == (FAILED, FAILED, made_by)


def test_a_job_that_another_process_runs_is_waited_for(done, caplog):
    caplog.set_level("INFO")
    run = CellRun(CELL, done)
    with ThreadPoolExecutor() as pool:
        with locked(run.places.kept_record()):  # as the other process does while it runs the job
            running = pool.submit(run_jobs, [[run]], [{}], False)
            while "waiting for the other process" not in caplog.text:
                assert not running.done(), running.result()
        assert running.result(timeout=60) == []


def test_ctrl_c_ends_the_running_command_with_one_line(tmp_path):
    listed = tmp_path / "cells.json"
    listed.write_text(json.dumps({"cells": [asdict(CELL)]}))
    words = ["-m", "scripts.paper_tables.run_cells", "--cells", listed, "--models", "tiny", "--results_dir", tmp_path]
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log = state_path(tmp_path, CELL).with_suffix(".log")
    while not (children := log.is_file() and psutil.Process(process.pid).children()):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, error = process.communicate(timeout=60)
    assert printed == "used: 0 hours of one job; left: 1 cells\n"
    assert process.returncode == 130 and error.count("\n") == 1
    assert error.startswith(f"interrupted; rerun the command and it resumes: {sys.executable} -m scripts.paper_tables")
    gone, left = psutil.wait_procs(children, timeout=20)
    assert gone and not left


def lose_the_score(setting: Setting) -> None:
    scores_file(setting).write_text("{}")


def change_the_options(setting: Setting) -> None:
    records = json.loads(scores_file(setting).read_text())
    records["typos"]["options"]["end_index"] = 1
    scores_file(setting).write_text(json.dumps(records))


def break_the_state(setting: Setting) -> None:
    state_path(setting.results_dir, CELL).write_text('{"status": "done", "seconds": 1}')
    assert measured_seconds(setting.results_dir) == {}


@pytest.mark.parametrize("damage", [lose_the_score, change_the_options, break_the_state])
def test_a_cell_without_its_own_result_runs_again(done, damage):
    assert is_done(done)
    damage(done)
    assert not is_done(done)
    run_cell(done)
    assert is_done(done) and "typos" in json.loads(scores_file(done).read_text())


def edit_a_norm(setting: Setting, data: Path) -> str:
    """Change one model's file; its size and times stay."""
    path = Path(setting.models) / FINETUNED_MODELS["instruct"] / "model.safetensors"
    before = path.stat()
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("norm.weight"))
    save_file({**tensors, name: tensors[name] * 1.01}, path, metadata={"format": "pt"})
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return "instruct model"


def edit_the_questions(setting: Setting, data: Path) -> str:
    path = next(data.rglob("typos/question.jsonl"))
    path.write_text(path.read_text().replace('ground_truth": "', 'ground_truth": "Well, '))
    return "typos set"


def test_a_cell_is_done_only_for_the_models_and_sets_it_ran_with(tmp_path, caplog):
    data, models = tmp_path / "data", tmp_path / "models"
    shutil.copytree(ZOO / "data", data)
    for name, role in TINY_MODELS.items():
        shutil.copytree(ZOO / role, models / name)
    setting = Setting(tmp_path / "results", str(models), data, "transformers", None)
    run_cell(setting)
    assert is_done(setting)
    for edit in (edit_a_norm, edit_the_questions):
        before = json.loads(scores_file(setting).read_text())["typos"]
        edited = edit(setting, data)
        assert not is_done(setting)
        caplog.clear()
        with caplog.at_level("INFO"):
            (outcome,) = run_cell(setting)
        assert (outcome.status, outcome.reason) == (DONE, None)
        assert f"runs again and replaces its results; changed: {edited}" in caplog.text
        after = json.loads(scores_file(setting).read_text())["typos"]
        assert (after["identity"] != before["identity"]) == (edited == "instruct model")
        assert is_done(setting)
    shutil.rmtree(models)  # nothing shows that they changed
    assert is_done(setting)


def test_the_number_of_gpus_does_not_matter_but_the_backend_does(done):
    assert is_done(replace(done, tensor_parallel_size=2))
    assert not is_done(replace(done, backend="auto"))


def test_a_state_of_an_earlier_version_counts_as_done(done):
    run = CellRun(CELL, done)
    path = state_path(done.results_dir, CELL)
    state = json.loads(path.read_text())
    words = [*Command("", MERGE).words[1:], "--", *Command(LIVEBENCH, CELL.options).words]
    inputs = {"commands": [command.text for command in run.commands], "hashes": state["hashes"]}
    old = {name: state[name] for name in ("commands", "status", "root", "tasks_name", "name", "seconds")}
    path.write_text(json.dumps({**old, "tables": ["ood"], "cell": shlex.join(words), "inputs": inputs}))
    assert is_done(done) and not is_done(replace(done, backend="auto"))


def test_an_attack_cell_is_done_with_its_results(tmp_path):
    cell = Cell(
        ("adversarial",), MERGE, "promptbench/sst2.py", {"model_path": "MERGED", "attack_method": ["stresstest"]}
    )
    run = CellRun(
        replace(cell, options={**cell.options, "seed": 3}), Setting(tmp_path, "tiny", None, "transformers", None)
    )
    (outcome,) = run_job([run], {}, False, threading.Event())
    assert (outcome.status, outcome.reason) == (DONE, None)
    result = run.places.adversarial_result("sst2", "stresstest")
    whole = result.read_text()
    result.write_text(whole[:50])
    assert not run.is_done()
    result.write_text(whole)
    assert run.is_done()
    make_tables([str(tmp_path)])
    assert [(row["dataset"], row["attack"]) for row in read_scores(tmp_path)] == [("SST-2", "stresstest")]


@pytest.fixture
def two_gpus(tmp_path, monkeypatch) -> None:
    """A driver with two GPUs."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 0\necho 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("visible", "ids"),
    [(None, ["0", "1"]), ("-1", []), ("", []), ("1,-1,0", ["1"]), ("1", ["1"]), ("GPU-5a,0", ["GPU-5a", "0"])],
)
def test_visible_gpus_are_counted_as_cuda_does(two_gpus, monkeypatch, visible, ids):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == ids


@pytest.mark.parametrize(
    ("given", "backend", "gpus", "size"),
    [
        (None, "vllm", 2, 2),
        (None, "vllm", 1, 1),
        (1, "vllm", 2, 1),
        (None, "transformers", 2, None),
        (None, "auto", 0, None),
    ],
)
def test_the_number_of_gpus_of_a_model_has_a_default(given, backend, gpus, size):
    assert tensor_parallel_size(given, backend, gpus) == size


def test_jobs_share_the_gpus_or_cores():
    assert job_slots(["0", "1", "2"], 1, False) == [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in "012"]
    assert job_slots(["0", "1", "2"], 2, False) == [{"CUDA_VISIBLE_DEVICES": "0,1"}]
    assert job_slots(["0"], None, False) == job_slots([], 2, False) == [{}]
    assert {slot["OMP_NUM_THREADS"] for slot in job_slots([], None, True)} == {"1"}


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("warn('slow'); os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL; out of memory?"),
        ("warn('slow'); os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        ("warn('error: no such set'); print('[rank0] bye'); sys.exit(2)", "no such set"),
        ("sys.stderr.buffer.write(b'caf\\xe9\\n'); sys.exit(1)", "caf\N{REPLACEMENT CHARACTER}"),
        ("print('half way'); os._exit(3)", "half way"),  # output is not buffered
        ("warn('interrupted; rerun the command and it resumes: python part.py'); sys.exit(130)", "interrupted"),
        ("sys.exit(3)", "ended with status 3 and no message"),
        ("warn('error: a warning')", None),
    ],
)
def test_the_reason_for_a_failed_command_is_one_line(tmp_path, program, reason):
    script = tmp_path / "script.py"
    script.write_text(f"import os, signal, sys; warn = lambda line: print(line, file=sys.stderr)\n{program}")
    with open(tmp_path / "log", "wb") as output:
        output.write(b"error: of the command before\n")
        assert run_command(Command(str(script), {}), {}, output) == reason
