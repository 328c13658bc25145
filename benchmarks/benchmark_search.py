"""Compare a search with runs of the main job, and replacing an engine's weights with starting an engine.

    python benchmarks/benchmark_search.py --backend vllm --tensor_parallel_size 2 --output benchmarks/search_vllm.md

Uses the tiny models and two tasks. The search is one process; the main job is one process for each draw. Only some of
the main job's runs are made; their mean stands for all.
"""

import os
import sys

if __name__ in ("__main__", "__mp_main__"):  # before the imports, which take a while
    from utils.interrupts import prepare_process

    prepare_process(__name__)

import argparse
import re
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from benchmarks.benchmark_processes import machine
from model_merging_methods.mixup import draw_ratios
from utils.command_line import OneLineParser, positive_number
from utils.errors import UserError, run_command_line
from utils.whole_files import write_whole

ROOT = Path(__file__).resolve().parent.parent
ZOO = ROOT / "scripts" / "tiny_zoo"
TASKS = ("alpaca_eval", "gsm8k")
EXAMPLES = 30  # of each task, for each draw on either side
METHODS = ("average_merging", "ties_merging")
SPENT = re.compile(r"engine start ([\d.]+) s, (\d+) replacements of its weights ([\d.]+) s each")


@dataclass(frozen=True)
class Comparison:
    """Seconds for one method: the search with all its draws, one run of the main job (mean), the start of the search's
    engine, one replacement of its weights."""

    method: str
    search: float
    run: float
    start: float
    replacement: float


def main() -> None:
    parser = OneLineParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--backend", choices=("vllm", "transformers"), default="vllm")
    parser.add_argument("--tensor_parallel_size", type=positive_number, default=2)
    parser.add_argument("--num_draws", type=positive_number, default=20)
    parser.add_argument("--runs", type=positive_number, default=3, help="runs of the main job (default: 3)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--output", type=Path, help="file for the table (default: none)")
    options = parser.parse_args()
    text = report([compare(method, options) for method in options.methods], options)
    print(text)
    if options.output is not None:
        write_whole(options.output, text)


def compare(method: str, options: argparse.Namespace) -> Comparison:
    """Run the main job before and after the search, because the machine's speed varies over minutes."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [main_job(method, number, Path(folder), options) for number in range(-(-options.runs // 2))]
        seconds, printed = timed(search_command(method, Path(folder), options))
        found = SPENT.search(printed)
        if found is None:
            raise UserError(f"the search did not print the time it spent:\n{printed}")
        runs += [main_job(method, number, Path(folder), options) for number in range(len(runs), options.runs)]
    return Comparison(method, seconds, sum(runs) / len(runs), float(found[1]), float(found[3]))


def main_job(method: str, number: int, folder: Path, options: argparse.Namespace) -> float:
    """Seconds of the main job at the ratio of one draw."""
    ratio = draw_ratios(0.5, 2, number)[0]
    command = ["merge_llms_instruct_math_code.py", *common(method, folder / f"run_{number}", options)]
    return timed([*command, "--mixup_lambda", ratio, "--tasks", *TASKS, "--end_index", EXAMPLES])[0]


def search_command(method: str, folder: Path, options: argparse.Namespace) -> list[object]:
    command = ["scripts/search_mixup.py", *common(method, folder / "search", options), "--tasks", *TASKS]
    return [*command, "--num_draws", options.num_draws, "--num_validation", EXAMPLES, "--num_test", EXAMPLES]


def common(method: str, output: Path, options: argparse.Namespace) -> list[object]:
    models = ["--pretrained_model", ZOO / "base"]
    for role in ("instruct", "math"):
        models += [f"--merge_{role}", f"--{role}_model", ZOO / role]
    engine = ["--backend", options.backend, "--tensor_parallel_size", options.tensor_parallel_size]
    return [*models, "--merging_method_name", method, "--data_dir", ZOO / "data", "--output_dir", output, *engine]


def timed(command: Sequence[object]) -> tuple[float, str]:
    """Run a command; returns its seconds and its output."""
    words = [sys.executable, *(str(word) for word in command)]
    started = time.perf_counter()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise UserError(f"{' '.join(words)} failed:\n{done.stderr}")
    print(f"{seconds:.0f} s: {' '.join(words[1:])}", file=sys.stderr)
    return seconds, done.stdout


def report(comparisons: Sequence[Comparison], options: argparse.Namespace) -> str:
    engine = f"{options.backend}, {options.tensor_parallel_size} workers"
    lines = [
        f"# A search of {options.num_draws} draws, and the same number of runs of the main job ({engine})",
        "",
        f"Made by `python benchmarks/benchmark_search.py {' '.join(sys.argv[1:])}` on {date.today()}.",
        "",
        *(f"* {line}" for line in machine(("torch", "transformers"))),
        "",
        f"The tiny models; {' and '.join(TASKS)}, {EXAMPLES} examples of each for every draw. Seconds of whole",
        "processes. The search also scores equal ratios and each fine-tune, tests its choice, and writes the report.",
        f"The main job ran {options.runs} times, before and after the search; the time of all runs is calculated.",
        "",
        "| method | search | one run | all runs | search / runs | engine start | replacement | replacement / start |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in comparisons:
        runs = one.run * options.num_draws
        lines.append(
            f"| {one.method} | {one.search:.0f} | {one.run:.1f} | {runs:.0f} | {one.search / runs:.3f} | "
            f"{one.start:.1f} | {one.replacement:.2f} | {one.replacement / one.start:.3f} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(run_command_line(main))
