"""Kill merges, generations, searches and tables at random moments, rerun them, and compare the results.

    python benchmarks/kill_at_random.py merge generation search table --rounds 20 --output benchmarks/kills.md

Each kind runs once undisturbed. Then each round starts it again, kills it between its first and its last result, with
SIGKILL and Ctrl-C alternately, and reruns the command. The results must be equal byte for byte, except times. Commands
run in forks of this process, which has loaded their modules.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.benchmark_checkpoints import LlamaShape, make_checkpoint
from inference_llms import __main__ as generation
from inference_llms.engines import transformers as _transformers  # noqa: F401 (imported before the forks)
from merge_llms_instruct_math_code import main as merge_main
from model_merging_methods import candidate_weights, merge_folders  # noqa: F401
from scripts import search_mixup
from scripts.paper_tables import run_cells
from utils.errors import run_command_line
from utils.interrupts import INTERRUPTED, prepare_process
from utils.whole_files import write_whole

ROOT = Path(__file__).resolve().parent.parent
ZOO = ROOT / "scripts" / "tiny_zoo"
SHAPE = LlamaShape(8, 768, 2048, 12, 12, vocabulary=8000)
CELLS = [
    {
        "tables": ["performance"],
        "merge": {"merge_instruct": True, "merge_math": True, "merging_method_name": method},
        "script": "merge_llms_instruct_math_code.py",
        "options": {"end_index": 20, "tasks": ["gsm8k", "alpaca_eval"]},
    }
    for method in ("average_merging", "task_arithmetic")
]


@dataclass(frozen=True)
class Kind:
    """A command that writes below a folder. `has_begun` and `has_ended`: whether its first and its last result exist.
    `results`: the results to compare."""

    main: Callable[[list[str]], None]
    words: list[object]
    has_begun: Callable[[Path], bool]
    has_ended: Callable[[Path], bool]
    results: Callable[[Path], object]


def kind_of_name(name: str, folder: Path, out: Path) -> Kind:
    models = {role: folder / role for role in ("base", "instruct", "math")} if name == "merge" else {}
    models = models or {role: ZOO / role for role in ("base", "instruct", "math")}
    merge = ["--merge_instruct", "--merge_math", "--pretrained_model", models["base"]]
    merge += ["--instruct_model", models["instruct"], "--math_model", models["math"], "--output_dir", out]
    running = ["--data_dir", ZOO / "data", "--backend", "transformers"]
    if name == "merge":
        for number, role in enumerate(models):
            make_checkpoint(models[role], SHAPE, number)
        method = ["--mask_apply_method", "ties_merging", "--weight_mask_rate", 0.3, "--use_weight_rescale"]
        return Kind(
            merge_main,
            [*merge, *method, "--merge_only"],
            _glob(".*.unfinished"),
            _glob("merge_record.json", 2),
            _models,
        )
    if name == "generation":
        words = ["--load_model_path", ZOO / "math", "--tasks", "gsm8k", "MATH", "alpaca_eval", "mbpp"]
        words += ["--output_dir", out, *running]
        return Kind(generation.main, words, _glob("gsm8k.jsonl"), _has_scores, _completions)
    if name == "search":
        words = [*merge, "--merging_method_name", "average_merging", "--num_draws", 3]
        words += ["--tasks", "gsm8k", "--num_validation", 8, "--num_test", 8, "--tensor_parallel_size", 1, *running]
        return Kind(search_mixup.main, words, _has_answers, _glob("report.html"), _answers)
    listed = folder / "cells.json"
    listed.write_text(json.dumps({"cells": CELLS}))
    words = ["--cells", listed, "--models", "tiny", "--results_dir", out]
    return Kind(run_cells.main, words, _glob("paper_cells/*.json"), _glob("tables.html"), _tables)


def _matching(out: Path, pattern: str) -> list[Path]:
    """The files and folders whose paths match, outside unfinished folders, whose files come and go."""
    paths = [Path(folder, name) for folder, folders, files in os.walk(out) for name in (*folders, *files)]
    return [path for path in paths if path.match(pattern) and ".unfinished/" not in str(path)]


def _glob(pattern: str, number: int = 1) -> Callable[[Path], bool]:
    return lambda out: len(_matching(out, pattern)) >= number


def _has_scores(out: Path) -> bool:
    return any("mbpp" in path.read_text() for path in _matching(out, "save_scores/*/*.json"))


def _has_answers(out: Path) -> bool:
    try:
        return any(_query(path, "SELECT 1 FROM answers") for path in _matching(out, "*.sqlite"))
    except sqlite3.OperationalError:  # the tables are being made
        return False


def _query(path: Path, query: str) -> list[tuple]:
    connection = sqlite3.connect(path, timeout=60)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def _models(out: Path) -> object:
    files = [path for path in out.glob("save_merge_models/**/*") if path.is_file() and path.suffix == ".safetensors"]
    return sorted((str(path), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files)


def _completions(out: Path) -> object:
    rows = {}
    for path in out.glob("save_raw_generations/**/*.jsonl"):
        read = [{**json.loads(line), "time": 0} for line in path.read_text().splitlines()]
        rows[str(path)] = sorted(map(str, read))  # in the order in which they were done
    return rows, [path.read_bytes() for path in sorted(out.glob("save_scores/**/*.json"))]


def _answers(out: Path) -> object:
    (path,) = out.glob("**/*.sqlite")
    answers = 'SELECT candidate, task, part, example, completion, "right" FROM answers ORDER BY 1, 2, 3, 4'
    scores = 'SELECT candidate, task, part, examples, "right" FROM scores ORDER BY 1, 2, 3, 4'
    return _query(path, answers), _query(path, scores)


def _tables(out: Path) -> object:
    return [(out / "tables" / name).read_bytes() for name in ("scores.csv", "tables.md")], _completions(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="+", choices=("merge", "generation", "search", "table"))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, help="write the table here")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell script's background jobs
    lines = ["| kind | kills | inside the work | same results | one line after Ctrl-C | processes left | files left |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for name in options.kinds:
        with tempfile.TemporaryDirectory(prefix="kills_") as folder:
            lines.append(kill_rounds(name, options.rounds, Path(folder)))
            print(lines[-1], flush=True)
    if options.output is not None:
        write_whole(options.output, "\n".join(lines) + "\n")


def kill_rounds(name: str, rounds: int, folder: Path) -> str:
    out, stderr = folder / "out", folder / "stderr"
    kind = kind_of_name(name, folder, out)
    child = start(kind, stderr)
    wait_until(kind.has_begun, child, out)
    began = time.monotonic()
    wait_until(kind.has_ended, child, out)
    seconds = time.monotonic() - began
    assert child.wait() == 0, stderr.read_text()
    expected, files = kind.results(out), hidden_files(out)
    assert kind.has_ended(out) and not files
    inside = same = lines = interrupts = processes = left = 0
    moments = random.Random(0)
    for number in range(rounds):
        shutil.rmtree(out)
        child = start(kind, stderr)
        wait_until(kind.has_begun, child, out)
        time.sleep(moments.uniform(0, 0.8 * seconds))
        by_kill = number % 2 == 0
        others = child.children(recursive=True)
        child.send_signal(signal.SIGKILL if by_kill else signal.SIGINT)
        status = child.wait()
        is_inside = status == (-signal.SIGKILL if by_kill else INTERRUPTED) and not kind.has_ended(out)
        inside += is_inside
        if is_inside and not by_kill:
            interrupts += 1
            lines += stderr.read_text().startswith("interrupted; rerun the command and it resumes")
        processes += len(psutil.wait_procs(others, timeout=10)[1])
        status = start(kind, stderr).wait()
        is_same = status == 0 and kind.results(out) == expected
        if not is_same:
            print(f"{name}, round {number}: {status} {stderr.read_text()[-500:]}", file=sys.stderr)
        same += is_same
        left += hidden_files(out)
    return f"| {name} | {rounds} | {inside} | {same} | {lines} of {interrupts} | {processes} | {left} |"


def start(kind: Kind, stderr: Path) -> psutil.Process:
    """The command in a separate process; its stderr goes to the file `stderr`."""
    child = os.fork()
    if child == 0:
        os.setsid()
        for stream, path in ((1, os.devnull), (2, stderr)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        prepare_process("__main__")
        os._exit(run_command_line(lambda: kind.main([str(word) for word in kind.words])))
    return psutil.Process(child)


def wait_until(is_true: Callable[[Path], bool], child: psutil.Process, out: Path) -> None:
    while not is_true(out) and child.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.002)


def hidden_files(out: Path) -> int:
    return sum(path.name.startswith(".") for path in out.rglob("*"))


if __name__ == "__main__":
    main()
