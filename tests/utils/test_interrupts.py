"""Ctrl-C ends every entry script with one line and status 130, even during imports; children end with their parent."""

import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.inference_llms.support import ROOT

ZOO = ROOT / "scripts" / "tiny_zoo"
SCRIPTS = {
    "merge_llms_instruct_math_code.py": ["--merge_instruct", "--merge_math"],
    "ood_robust_inference.py": ["--help"],
    "-m inference_llms": ["--help"],
    "-m model_merging_methods.diagnose": ["--help"],
    "-m scripts.mergebench.run": ["--help"],
    "-m scripts.paper_tables.run_cells": ["--help"],
    "promptbench/sst2.py": ["--help"],
    "promptbench/cola.py": ["--help"],
    "scripts/search_mixup.py": ["--help"],
    "scripts/make_tables.py": ["--help"],
    "scripts/plot_figures.py": ["--help"],
    "scripts/run_demo.py": ["--help"],
    "scripts/tiny_zoo/train.py": ["--help"],
}


def interrupt(words: list[object], library: str, folder: Path, by: int = signal.SIGINT) -> tuple[int, str]:
    """Start a command and send a signal once it has loaded a library; returns its status and stderr."""
    command = [sys.executable, *map(str, words)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    maps = Path(f"/proc/{process.pid}/maps")
    while library not in maps.read_text():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(by)
    _, error = process.communicate(timeout=60)
    assert not list(folder.iterdir())
    typed = shlex.join(map(str, command))
    return process.returncode, error.replace(f": {typed}\n", ": as typed\n")


@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_while_a_script_imports_is_one_line(script, tmp_path):
    # Python loads its first compiled module after its own start and long before most imports.
    status, error = interrupt([*script.split(), *SCRIPTS[script]], "lib-dynload", tmp_path)
    assert (status, error) == (130, "interrupted; rerun the command and it resumes: as typed\n")


@pytest.mark.parametrize("table", ["mergebench", "methods"])
def test_the_command_that_a_table_prints_when_stopped_is_the_same_command(table, tmp_path):
    python = tmp_path / "python with space"
    python.write_text('#!/bin/sh\necho "$MERGING_TYPED_COMMAND"\necho "$PYTHON $SEEDS $*"\n')
    python.chmod(0o755)
    words = ["bash", f"scripts/paper/{table}.sh", "--models", "tiny", "--results_dir", "a b"]
    variables = {"PATH": "/usr/bin:/bin", "PYTHON": str(python), "SEEDS": "0 1"}
    typed = subprocess.run(words, cwd=ROOT, env=variables, capture_output=True, text=True, check=True).stdout
    printed = typed.splitlines()[0]
    again = subprocess.run(
        printed, shell=True, cwd=ROOT, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    assert again.stdout == typed


def test_ctrl_c_while_torch_starts_is_one_line(tmp_path):
    words = ["-m", "inference_llms", "--load_model_path", ZOO / "math", "--tasks", "gsm8k", "--backend", "transformers"]
    words += ["--data_dir", ZOO / "data", "--output_dir", tmp_path / "out"]
    status, error = interrupt(words, "libtorch_python", tmp_path)
    assert (status, error) == (130, "interrupted; rerun the command and it resumes: as typed\n")


COMMAND = """
import sys
sys.path.insert(0, {root!r})
from utils.interrupts import prepare_process
prepare_process("__main__")
import os, signal, time
from utils.errors import run_command_line
{main}
sys.exit(run_command_line(main))
"""


def run_interrupted(main: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", COMMAND.format(root=str(ROOT), main=main)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("main", "printed"),
    [
        ("try: stop(); time.sleep(60)\n  finally: print('closed')", "closed\n"),
        ("try: stop()\n  except BaseException: raise OSError('gone')", ""),
        ("try: stop()\n  except BaseException: pass", ""),
        ("try: stop()\n  except BaseException: pass\n  time.sleep(60); print('went on')", ""),
        ("class T:\n    def __del__(self): stop()\n  T(); time.sleep(60)", ""),
        ("try: stop()\n  finally: time.sleep(1.5); print('closed')", "closed\n"),
        ("try: stop()\n  finally: stop(); print('closed')", ""),
        ("threading.Thread(target=time.sleep, args=[60]).start(); stop()", ""),
    ],
    ids=[
        "the work is closed",
        "a library raises another error",
        "a library swallows it",
        "and goes on",
        "a finalizer runs",
        "slow clean-up",
        "twice",
        "a thread hangs",
    ],
)
def test_ctrl_c_ends_the_work_in_one_line(main, printed):
    before = "import threading\nstop = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
    done = run_interrupted(f"{before}def main():\n  {main}\n")
    assert (done.returncode, done.stderr) == (130, "interrupted; rerun the command and it resumes\n")
    assert done.stdout == printed


@pytest.mark.parametrize("moment", ["lib-dynload", "libtorch_python"])
def test_sigterm_is_one_line_with_the_command_that_resumes(moment, tmp_path):
    (nothing_here := tmp_path / "nothing").mkdir()  # not the output folder: SIGTERM ends a command without clean-up
    words = ["-m", "inference_llms", "--load_model_path", ZOO / "math", "--tasks", "gsm8k", "--backend", "transformers"]
    words += ["--data_dir", ZOO / "data", "--output_dir", tmp_path / "out"]
    status, error = interrupt(words, moment, nothing_here, by=signal.SIGTERM)
    assert (status, error) == (-signal.SIGTERM, "terminated; rerun the command and it resumes: as typed\n")


@pytest.mark.parametrize(("progress", "printed"), [("['used: 1 hour']", "used: 1 hour\n"), ("1 / 0", "")])
def test_sigterm_prints_the_progress_if_there_is_any(progress, printed):
    done = run_interrupted(f"""
from utils.interrupts import report_when_terminated
def main():
    report_when_terminated(lambda: {progress})
    os.kill(os.getpid(), signal.SIGTERM)
""")
    assert done.returncode == -signal.SIGTERM
    assert done.stderr == f"terminated; rerun the command and it resumes\n{printed}"


def test_sigterm_to_a_forked_child_is_silent():
    done = run_interrupted("""
def main():
    child = os.fork()
    if not child:
        time.sleep(60)
    os.kill(child, signal.SIGTERM)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]))
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{signal.SIGTERM:d}\n", "")


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
def test_children_end_when_their_command_is_killed(by):
    main = """
from utils.child_processes import child_process
def main():
    words = [sys.executable, "-c", "import sys; sys.path.insert(0, {root!r}); from utils.interrupts import *; "
        "prepare_process('__main__'); print('up', flush=True); import time; time.sleep(60)"]
    with child_process(words, os.environ) as child:
        print(child.pid, flush=True)
        time.sleep(60)
"""
    command = [sys.executable, "-c", COMMAND.format(root=str(ROOT), main=main.replace("{root!r}", repr(str(ROOT))))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(process.stdout.readline()))
    assert process.stdout.readline() == "up\n"
    process.send_signal(by)
    process.wait()
    gone, _ = psutil.wait_procs([child], timeout=20)
    assert gone or child.status() == psutil.STATUS_ZOMBIE
