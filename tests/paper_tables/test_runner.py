"""Running cells: whose results stand where, what a run takes of a machine, what is told of one that ends badly."""

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
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file, save_file
from scripts.paper_tables.cell import Cell, read_cells, read_state, state_path
from scripts.paper_tables.commands import Setting, merge_places
from scripts.paper_tables.estimate import answer_seconds, estimate_cell, measured_seconds, prompts_of_attack
from scripts.paper_tables.jobs import DONE, FAILED, check_cells, is_done, run_command, run_job, run_jobs
from scripts.paper_tables.machine import Machine, find_machine
from tests.paper.support import SCRIPTS, read_scores, run_script

from promptbench import cola, sst2
from promptbench.attack import AttackParts
from promptbench.attacks import deepwordbug, stresstest
from promptbench.search import search
from scripts.make_tables import main as make_tables
from scripts.paper_tables.run_cells import main as run_cells
from tests.inference_llms.support import ROOT
from utils.errors import UserError
from utils.model_folders import FINETUNED_MODELS, PRETRAINED_MODEL
from utils.whole_files import locked

ZOO = ROOT / "scripts" / "tiny_zoo"
MERGE = ("--merge_instruct", "--merge_code", "--merging_method_name", "average_merging")
TYPOS = ("ood_robust_inference.py", "--load_model_path", "MERGED", "--evaluate_task", "typos", "--end_index", "2")
CELL = Cell(("ood",), MERGE, TYPOS)
PAPER = Setting(Path("paper_results"), None, None, "auto", None)


def models_folder(folder: Path, instruct: str) -> str:
    """Tiny models under the paper's names, in the instruct model's place the one of this name."""
    for name, model in {PRETRAINED_MODEL: "base", **{name: role for role, name in FINETUNED_MODELS.items()}}.items():
        folder.mkdir(exist_ok=True)
        (folder / name).symlink_to(ZOO / (instruct if model == "instruct" else model))
    return str(folder)


def run(cells, setting, delete_merged_models=False):
    return run_job(cells, setting, {}, delete_merged_models, threading.Event())


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Setting:
    """What the cell was run with, on the models of one folder."""
    folder = tmp_path_factory.mktemp("running")
    models = models_folder(folder / "A", "instruct")
    setting = Setting(folder / "results", models, ZOO.relative_to(ROOT) / "data", "transformers", None)
    (outcome,) = run([CELL], setting)
    assert (outcome.status, outcome.reason) == (DONE, None)
    return setting


@pytest.fixture
def done(first, tmp_path) -> Setting:
    """The same in a copy of the results' folder, to be spoilt."""
    results = tmp_path / "results"
    shutil.copytree(first.results_dir, results)
    for path in (*results.rglob("*.json"), *results.rglob("*.jsonl")):
        path.write_text(path.read_text().replace(str(first.results_dir), str(results)))
    return replace(first, results_dir=results)


def commands_of_scores(results_dir: Path) -> list[str]:
    make_tables([str(results_dir)])
    return [row["command"] for row in read_scores(results_dir) if row["status"] == "ok"]


@pytest.mark.parametrize("weights_are_there", [True, False])
def test_scores_never_stand_under_a_command_on_other_models(done, tmp_path, weights_are_there):
    (command,) = commands_of_scores(done.results_dir)
    other = replace(done, models=models_folder(tmp_path / "B", "math"))
    if not weights_are_there:
        shutil.rmtree(done.results_dir / "save_merge_models")
    (outcome,) = run([CELL], other)
    assert outcome.status == FAILED and "holds this merge of other models" in outcome.reason
    assert commands_of_scores(done.results_dir) == [command]
    assert bool(list(done.results_dir.rglob("*.safetensors"))) == weights_are_there


def test_a_merge_is_asked_for_once_a_job_though_a_model_is_there(done):
    other = replace(CELL, words=(*TYPOS[:-1], "3"))
    shutil.rmtree(done.results_dir / "paper_cells")
    outcomes = run([CELL, other], done)
    assert [outcome.status for outcome in outcomes] == [DONE, DONE]
    logs = [state_path(done.results_dir, cell).with_suffix(".log").read_text() for cell in (CELL, other)]
    assert ["already merged" in text for text in logs] == [True, False]


def test_results_stay_those_of_the_command_that_made_them_when_another_fails(done, tmp_path):
    made_by = read_state(done.results_dir, CELL)["commands"]
    (outcome,) = run([CELL], replace(done, data_dir=tmp_path / "nowhere"))
    state = read_state(done.results_dir, CELL)
    assert (outcome.status, state["status"]) == (FAILED, FAILED)
    assert state["commands"] == made_by


def test_what_another_process_runs_is_waited_for(done, caplog):
    caplog.set_level("INFO")
    with ThreadPoolExecutor() as pool:
        with locked(
            merge_places(CELL, done).kept_record()
        ):  # as the other process does while it runs the merge's cells
            running = pool.submit(run_jobs, [[CELL]], done, [{}], False)
            while "waiting for the other process" not in caplog.text:
                assert not running.done(), running.result()
        assert running.result(timeout=60) == []


def test_ctrl_c_for_the_tables_reaches_the_command_at_work(tmp_path):
    listed = tmp_path / "cells.tsv"
    listed.write_text(f"ood\t{shlex.join(MERGE)}\t{shlex.join(TYPOS)}\n")
    words = ["-m", "scripts.paper_tables.run_cells", "--cells", listed, "--models", "tiny", "--results_dir", tmp_path]
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (children := psutil.Process(process.pid).children()):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "interrupted; rerun the command and it resumes\n")
    gone, left = psutil.wait_procs(children, timeout=20)
    assert gone and not left


def test_a_cell_whose_score_is_gone_is_run_again(done):
    scores = merge_places(CELL, done).scores()
    assert is_done(CELL, done)
    scores.write_text("{}")
    assert not is_done(CELL, done)
    run([CELL], done)
    assert is_done(CELL, done) and "typos" in json.loads(scores.read_text())


def test_a_cell_whose_result_another_command_replaced_is_run_again(done):
    scores = merge_places(CELL, done).scores()
    records = json.loads(scores.read_text())
    records["typos"]["command"] += " --end_index 2"
    scores.write_text(json.dumps(records))
    assert not is_done(CELL, done)


def edit_a_norm(setting: Setting, data: Path) -> str:
    """In one model's file; its size and times stay."""
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


@pytest.mark.parametrize("edit", [edit_a_norm, edit_the_questions])
def test_a_cell_is_done_only_for_the_models_and_sets_it_was_run_with(tmp_path, caplog, edit):
    data, models = tmp_path / "data", tmp_path / "models"
    shutil.copytree(ZOO / "data", data)
    for name, role in {PRETRAINED_MODEL: "base", **{name: role for role, name in FINETUNED_MODELS.items()}}.items():
        shutil.copytree(ZOO / role, models / name)
    setting = Setting(tmp_path / "results", str(models), data, "transformers", None)
    run([CELL], setting)
    before = json.loads(merge_places(CELL, setting).scores().read_text())["typos"]
    assert is_done(CELL, setting)

    edited = edit(setting, data)
    assert not is_done(CELL, setting)
    with caplog.at_level("INFO"):
        (outcome,) = run([CELL], setting)
    assert (outcome.status, outcome.reason) == (DONE, None)
    assert f"run again, replacing its results: another {edited}" in caplog.text
    after = json.loads(merge_places(CELL, setting).scores().read_text())["typos"]
    assert (after["identity"] != before["identity"]) == (edited == "instruct model")
    assert is_done(CELL, setting)
    shutil.rmtree(models)  # nothing shows that they changed
    assert is_done(CELL, setting)


@pytest.mark.parametrize("text", ['{"status": "done"}', '{"sta', "[]", '{"status": "done", "seconds": 1}'])
def test_a_cell_whose_state_is_broken_is_run_again(done, text):
    state_path(done.results_dir, CELL).write_text(text)
    assert not is_done(CELL, done) and measured_seconds(done) == {}
    run([CELL], done)
    assert is_done(CELL, done)


def test_a_cell_is_done_on_however_many_gpus(done):
    assert is_done(CELL, replace(done, tensor_parallel_size=2))
    assert not is_done(CELL, replace(done, backend="auto"))


def test_a_task_of_an_array_tells_of_its_own_cells(done, tmp_path, capsys):
    listed = tmp_path / "cells.tsv"
    merges = (MERGE, (*MERGE, "--mixup"))
    listed.write_text("".join(f"ood\t{shlex.join(merge)}\t{shlex.join(TYPOS)}\n" for merge in merges))
    options = ["--models", done.models, "--data_dir", str(done.data_dir), "--backend", "transformers"]
    run_cells(["--cells", str(listed), "--results_dir", str(done.results_dir), *options, "--job", "0"])
    assert "1 cells: 0 done now, 1 before, 0 failed" in capsys.readouterr().out


def test_a_cell_that_goes_on_after_its_attacks_is_done_when_they_are(tmp_path, capsys):
    words = ("promptbench/sst2.py", "--model_path", "MERGED", "--attack_method", "stresstest", "--seed", "3")
    cell = Cell(("adversarial",), MERGE, words)
    setting = Setting(tmp_path, "tiny", None, "transformers", None)
    (outcome,) = run([cell], setting)
    assert (outcome.status, outcome.reason) == (DONE, None)
    result = merge_places(cell, setting).adversarial_result("sst2", "stresstest")
    whole = result.read_text()
    result.write_text(whole[:50])
    assert not is_done(cell, setting)
    result.write_text(whole)
    assert is_done(cell, setting)
    make_tables([str(tmp_path)])
    assert [(row["dataset"], row["attack"]) for row in read_scores(tmp_path)] == [("SST-2", "stresstest")]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("promptbench/sst2.py --model_path MERGED --attack_method all", "--attack_method: name each attack"),
        ("promptbench/sst2.py --model_path MERGED", "--attack_method: name each attack"),
        ("ood_robust_inference.py --load_model_path MERGED", "--evaluate_task: name the task"),
    ],
)
def test_a_cell_that_does_not_say_what_it_leaves_is_refused(call, told):
    with pytest.raises(UserError, match=told):
        check_cells([Cell(("adversarial",), MERGE, tuple(call.split()))], PAPER)


def array_cells(script: Path) -> tuple[list[Cell], int]:
    """The cells that a job array takes its own from, and how many tasks it has."""
    text = script.read_text()
    words = shlex.split(text.splitlines()[-1])
    size = text.partition("--array=0-")[2].partition("\n")[0]
    return read_cells(Path(words[words.index("--cells") + 1])), int(size) + 1


def test_a_second_job_array_leaves_the_cells_of_the_first(tmp_path):
    options = ("--slurm", "--results_dir", tmp_path, "--backend", "vllm")
    for table in ("performance", "dare", "performance"):
        done = run_script(SCRIPTS / f"{table}.sh", *options)
        assert done.returncode == 0, done.stderr
        text = Path(done.stdout.splitlines()[0].removeprefix("sbatch ")).read_text()
        assert "--gres=gpu:2\n" in text and "--tensor_parallel_size 2 " in text
    scripts = sorted((tmp_path / "paper_jobs").glob("*.sbatch"))
    assert [script.name.partition("_")[0] for script in scripts] == ["dare", "performance"]
    for script in scripts:
        cells, size = array_cells(script)
        assert len(cells) == size and {script.name.partition("_")[0]} == {cell.tables[0] for cell in cells}


def test_a_task_that_an_array_does_not_have_is_told_in_one_line(tmp_path):
    done = run_script(SCRIPTS / "alpha.sh", "--models", "tiny", "--results_dir", tmp_path, "--job", 99)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "--job 99" in done.stderr and "holds 16 merges" in done.stderr


@pytest.fixture
def two_gpus(tmp_path, monkeypatch) -> Path:
    """A driver that tells of two GPUs; returns its program."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho '0, NVIDIA A100-SXM4-80GB'\necho '1, NVIDIA A100-SXM4-80GB'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return program


def dry_run(*options: object, **variables: str) -> subprocess.CompletedProcess:
    return run_script(SCRIPTS / "ood.sh", "--dry_run", *options, SEEDS="0", **variables)


@pytest.mark.parametrize(
    ("visible", "options", "size"),
    [
        ("0,1", ["--backend", "vllm"], " --tensor_parallel_size 2"),
        ("1", ["--backend", "vllm"], " --tensor_parallel_size 1"),
        ("0,1", ["--backend", "vllm", "--tensor_parallel_size", "1"], " --tensor_parallel_size 1"),
        ("0,1", ["--backend", "transformers"], ""),
    ],
)
def test_every_command_has_the_same_number_of_gpus_whatever_its_script_would_take(two_gpus, visible, options, size):
    done = dry_run(*options, CUDA_VISIBLE_DEVICES=visible)
    commands = [line for line in done.stdout.splitlines() if line.startswith("python ")]
    assert len(commands) == 12, done.stderr
    assert all(f"{options[1]}{size} --" in line for line in commands if "--merge_only" not in line)
    assert sum("--tensor_parallel_size" in line for line in commands) == (6 if size else 0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--tensor_parallel_size", "0"], "0 is too small"),
        (["--tensor_parallel_size", "4"], "--tensor_parallel_size 4: there are 2 GPUs"),
        (["--tensor_parallel_size", "2", "--backend", "transformers"], "--tensor_parallel_size 2 has no use"),
    ],
)
def test_a_number_of_gpus_that_cannot_be_is_told_in_one_line(two_gpus, options, told):
    done = dry_run(*options)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and told in done.stderr


@pytest.mark.parametrize(
    ("visible", "ids"), [("-1", ()), ("", ()), ("1,-1,0", ("1",)), ("1", ("1",)), ("GPU-5a,0", ("GPU-5a", "0"))]
)
def test_the_gpus_that_may_be_used_are_counted_as_cuda_does(two_gpus, monkeypatch, tmp_path, visible, ids):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert find_machine(tmp_path).gpu_ids == ids


@pytest.mark.parametrize("task", [sst2.TASK, cola.TASK])
def test_a_dry_run_reckons_with_the_prompts_that_an_attack_asks(task):
    for attack in (deepwordbug, stresstest):
        found = search(
            attack.open_attack(AttackParts(task)),
            task.prompt,
            task.protected_words,
            lambda prompts: [len(prompt) / 1000 for prompt in prompts],
        )
        name = attack.__name__.rpartition(".")[2]
        assert prompts_of_attack(task, name) == pytest.approx(found.number_of_queries, rel=0.1)
    most = {"sst2": 491, "cola": 785}[task.name]
    assert most / 2 < prompts_of_attack(task, "bertattack") <= most


def test_prompts_take_the_time_of_reading_them():
    a100 = Machine(("NVIDIA A100-SXM4-80GB",), ("0",), 8, 10**12)
    read = answer_seconds(1000, 500, 0, PAPER, a100)
    # 2 operations for each of 13 billion parameters and 500,000 tokens, at 0.4 of 312 * 10^12 a second.
    assert read == pytest.approx(2 * 13e9 * 500_000 / (0.4 * 312e12))
    words = ("promptbench/sst2.py", "--model_path", "MERGED", "--attack_method", "bertattack")
    attacked = estimate_cell(Cell((), MERGE, words), PAPER, a100, {}, merged=True).seconds
    assert attacked > 411 * 872 * 72 * 26e9 / (0.4 * 312e12)


def test_on_two_cores_13_billion_parameters_give_a_token_every_second_or_two():
    assert "13B gives a token every second or two" in (ROOT / "docs" / "memory_and_disk.md").read_text()
    assert 1 <= answer_seconds(1, 0, 1, PAPER, Machine((), (), 2, 10**12)) <= 2


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("warn('slow'); os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL; out of memory?"),
        ("warn('slow'); os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        ("warn('error: no such set'); print('[rank0] bye'); sys.exit(2)", "no such set"),
        ("sys.stderr.buffer.write(b'caf\\xe9\\n'); sys.exit(1)", "caf\N{REPLACEMENT CHARACTER}"),
        ("sys.exit(3)", "ended with status 3 and no word"),
        ("warn('error: mended')", None),
    ],
)
def test_what_ended_a_command_is_told_in_a_line(tmp_path, program, told):
    before = "import os, signal, sys; warn = lambda line: print(line, file=sys.stderr)\n"
    with open(tmp_path / "log", "wb") as output:
        output.write(b"error: of the command before\n")
        assert run_command(["-c", before + program], {}, output) == told


def test_the_log_has_warnings_while_a_command_is_at_work(tmp_path):
    log, ended = tmp_path / "log", tmp_path / "ended"
    program = (
        "import pathlib, sys, time\nprint('half', 'way', file=sys.stderr)\n"
        f"for _ in range(600):\n    time.sleep(0.05)\n    if pathlib.Path({str(ended)!r}).exists(): break\n"
    )
    with open(log, "wb") as output:
        thread = threading.Thread(target=run_command, args=(["-c", program], {}, output))
        thread.start()
        until = time.monotonic() + 20
        while "half way" not in log.read_text() and time.monotonic() < until:
            time.sleep(0.05)
        seen = log.read_text()
        ended.touch()
        thread.join()
    assert "half way" in seen


def test_paths_count_from_where_they_are_typed(tmp_path):
    models_folder(tmp_path / "models", "instruct")
    command = ["bash", SCRIPTS / "alpha.sh", "--models", "models", "--data_dir", "sets", "--dry_run"]
    environment = {**os.environ, "PYTHON": sys.executable, "SEEDS": "0"}

    def first_command(*options):
        words = [*command, *options]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return next(line for line in done.stdout.splitlines() if line.startswith("python "))

    typed = first_command("--results_dir", "out")
    assert f"--models_dir {tmp_path}/models --data_dir {tmp_path}/sets " in typed
    assert typed.endswith(f"--output_dir {tmp_path}/out")
    assert first_command().endswith("--output_dir paper_results")
    assert first_command("--results_dir", ROOT / "paper_results").endswith("--output_dir paper_results")


def test_an_interpreter_is_taken_by_its_name(tmp_path):
    program = tmp_path / "my-python"
    program.write_text(f'#!/bin/sh\ntouch {tmp_path}/used\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = run_script(SCRIPTS / "alpha.sh", "--dry_run", PYTHON="my-python", PATH=path)
    assert done.returncode == 0 and (tmp_path / "used").exists()
    done = run_script(SCRIPTS / "alpha.sh", "--dry_run", PYTHON="no-python", PATH=path)
    assert done.returncode == 2 and done.stderr == "error: PYTHON=no-python: no such program\n"


@pytest.mark.parametrize("script", ["all", "alpha"])
def test_no_temporary_file_is_left(tmp_path, script):
    done = run_script(SCRIPTS / f"{script}.sh", "--dry_run", TMPDIR=str(tmp_path))
    assert done.returncode == 0 and list(tmp_path.iterdir()) == []
