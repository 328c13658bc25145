"""Kill merges, generations, searches and tables at random moments, rerun them, and compare the results.

    python benchmarks/kill_at_random.py merge generation search table --rounds 20 --output benchmarks/kills.md

Each kind runs once undisturbed. Then each round starts it anew, kills it between its first result and its last one, by
SIGKILL and Ctrl-C in turn, and reruns the command. The results must be the same, bytes and all, except times.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil

from scripts.benchmark_checkpoints import LlamaShape, make_checkpoint
from utils.whole_files import write_whole

ROOT = Path(__file__).resolve().parent.parent
ZOO = ROOT / "scripts" / "tiny_zoo"
SHAPE = LlamaShape(8, 768, 2048, 12, 12, vocabulary=8000)
TABLE = """
source {shared}
table=performance
models="--merge_instruct --merge_math --end_index 20 --tasks gsm8k alpaca_eval"
cell merge_llms_instruct_math_code.py $models --merging_method_name average_merging
cell merge_llms_instruct_math_code.py $models --merging_method_name task_arithmetic
run_cells "$@"
"""


@dataclass(frozen=True)
class Kind:
    """A command that writes below a folder. `has_begun` and `has_ended`: whether there is a first result there, and
    the last one. `results`: what must be the same."""

    words: list[str]
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
        words = ["merge_llms_instruct_math_code.py", *merge, *method, "--merge_only"]
        return Kind(_words(words), _glob(".*.unfinished"), _glob("merge_record.json", 2), _models)
    if name == "generation":
        words = [
            "-m",
            "inference_llms",
            "--load_model_path",
            ZOO / "math",
            "--tasks",
            "gsm8k",
            "MATH",
            "alpaca_eval",
            "mbpp",
        ]
        words += ["--output_dir", out, *running]
        return Kind(_words(words), _glob("gsm8k.jsonl"), _has_scores, _completions)
    if name == "search":
        words = ["scripts/search_mixup.py", *merge, "--merging_method_name", "average_merging", "--num_draws", 3]
        words += ["--tasks", "gsm8k", "--num_validation", 8, "--num_test", 8, "--tensor_parallel_size", 1, *running]
        return Kind(_words(words), _has_answers, _glob("report.html"), _answers)
    script = folder / "table.sh"
    script.write_text(TABLE.format(shared=ROOT / "scripts" / "paper" / "shared.sh"))
    words = ["bash", script, "--models", "tiny", "--results_dir", out]
    return Kind([str(word) for word in words], _glob("paper_cells/*.json"), _glob("tables.html"), _tables)


def _words(words: list[object]) -> list[str]:
    return [sys.executable, *map(str, words)]


def _found(out: Path, pattern: str) -> list[Path]:
    """The files and folders whose paths match, outside unfinished folders; others come and go meanwhile."""
    paths = [Path(folder, name) for folder, folders, files in os.walk(out) for name in (*folders, *files)]
    return [path for path in paths if path.match(pattern) and ".unfinished/" not in str(path)]


def _glob(pattern: str, number: int = 1) -> Callable[[Path], bool]:
    return lambda out: len(_found(out, pattern)) >= number


def _has_scores(out: Path) -> bool:
    return any("mbpp" in path.read_text() for path in _found(out, "save_scores/*/*.json"))


def _has_answers(out: Path) -> bool:
    try:
        return any(_query(path, "SELECT 1 FROM answers") for path in _found(out, "*.sqlite"))
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
    out = folder / "out"
    kind = kind_of_name(name, folder, out)
    process, began = start(kind, out), time.monotonic()
    while not kind.has_ended(out) and process.poll() is None:
        time.sleep(0.002)
    seconds = time.monotonic() - began
    assert process.wait() == 0, process.stderr.read()
    expected, files = kind.results(out), hidden_files(out)
    assert kind.has_ended(out) and not files
    inside = same = lines = interrupts = processes = left = 0
    moments = random.Random(0)
    for number in range(rounds):
        shutil.rmtree(out)
        process = start(kind, out)
        time.sleep(moments.uniform(0, 0.8 * seconds))
        by_kill = number % 2 == 0
        is_inside = process.poll() is None and not kind.has_ended(out)
        process.send_signal(signal.SIGKILL if by_kill else signal.SIGINT)
        error = process.communicate()[1]
        inside += is_inside and not kind.has_ended(out)
        if not by_kill and is_inside:
            interrupts += 1
            lines += process.returncode == 130 and error.count("\n") == error.count("interrupted; ") == 1
        processes += processes_of(out)
        finished = start(kind, out)
        error = finished.communicate()[1]
        is_same = finished.returncode == 0 and kind.results(out) == expected
        if not is_same:
            print(f"{name}, round {number}: {finished.returncode} {error[-500:]}", file=sys.stderr)
        same += is_same
        left += hidden_files(out)
    return f"| {name} | {rounds} | {inside} | {same} | {lines} of {interrupts} | {processes} | {left} |"


def start(kind: Kind, out: Path) -> subprocess.Popen:
    """The command, once it has a first result where there was none."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    had_begun = out.exists()
    process = subprocess.Popen(
        kind.words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not had_begun and not kind.has_begun(out) and process.poll() is None:
        time.sleep(0.002)
    return process


def processes_of(out: Path) -> int:
    """How many processes still work below a folder, a second after the kill."""
    time.sleep(1)
    words = (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
    return sum(str(out) in " ".join(line) for line in words)


def hidden_files(out: Path) -> int:
    return sum(path.name.startswith(".") for path in out.rglob("*"))


if __name__ == "__main__":
    main()
