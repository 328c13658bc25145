"""Measure the methods that see a whole tensor, one matrix at a time, and estimate whole Llama-2 models from that.

    python benchmarks/benchmark_whole_tensors.py --device cuda --time_limit 40 --json gpu.json
    python benchmarks/benchmark_whole_tensors.py --tables cpu.json gpu.json --output benchmarks/whole_tensors.md

Two fine-tunes are the base plus a small low-rank and a small random change, rounded to bfloat16. Needs torch and numpy.
"""

import argparse
import ctypes
import json
import math
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.benchmark_processes import machine
from model_merging_methods.method import Method, Sees, WholeTensor
from model_merging_methods.methods import METHODS
from model_merging_methods.whole_tensors import merged_by_strips
from utils.command_line import OneLineParser, positive_number
from utils.errors import UserError, run_command_line
from utils.whole_files import write_whole

WHOLE = {name: method for name, method in METHODS.items() if method.sees is Sees.TENSOR}
SHAPES = ((2048, 5632), (4096, 11008), (5120, 13824))  # down_proj of models of 1.1, 7 and 13 billion parameters
NAME = "model.layers.0.mlp.down_proj.weight"
LONG = 5.0  # seconds from which one run is enough
TIMED_STEPS = {"wudi": 6}  # methods whose time is that of their steps: so many are run, and one, and scaled
STEPS = 300
_M_MMAP_THRESHOLD = -3  # of malloc.h
BUSY = 1.0  # load average of other work from which times are not to be trusted

Shape = tuple[int, int]


def elements(m: int, n: int, k: int) -> int:
    return m * n


def smaller_side(m: int, n: int, k: int) -> int:
    return m * n * min(m, n)


# What a method's time grows with, for K matrices of shape (m, n). By default m · n · min(m, n).
COSTS: Mapping[str, tuple[str, Callable[[int, int, int], int]]] = {
    **dict.fromkeys(("arcee_fusion", "sce", "widen"), ("m n", elements)),
    "ace": ("n² (m + n)", lambda m, n, k: n * n * (m + n)),
    "wudi": ("m n²", lambda m, n, k: m * n * n),
    **dict.fromkeys(("swudi", "aswudi"), ("m n min(K m, n)", lambda m, n, k: m * n * min(k * m, n))),
}
DEFAULT_COST = ("m n min(m, n)", smaller_side)

# Matrices of a model: number, shape, what they are, whether they are the weights of linear layers.
Matrices = Sequence[tuple[int, Shape, str, bool]]


def llama(hidden: int, intermediate: int, layers: int, vocabulary: int = 32000) -> Matrices:
    return (
        (4 * layers, (hidden, hidden), "q, k, v, o", True),
        (2 * layers, (intermediate, hidden), "gate, up", True),
        (layers, (hidden, intermediate), "down", True),
        (2, (vocabulary, hidden), "embeddings, lm_head", False),
    )


MODELS = {"Llama-2-7B": llama(4096, 11008, 32), "Llama-2-13B": llama(5120, 13824, 40)}


@dataclass(frozen=True)
class Result:
    """A method's figures for matrices of one shape.

    seconds: None if the time limit ruled out a run; `estimate` then is the reason, in seconds.
    steps: how many steps were run, if `seconds` are scaled from them.
    memory: the peak with what was read and the result, in float32 tensors of this shape.
    difference: the largest difference from the CPU's result, as a share of the largest change from the base.
    """

    method: str
    shape: Shape
    models: int
    seconds: float | None
    estimate: float | None = None
    steps: int | None = None
    memory: float | None = None
    difference: float | None = None


def main() -> None:
    parser = OneLineParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--methods", nargs="+", choices=sorted(WHOLE), default=sorted(WHOLE))
    parser.add_argument("--shapes", nargs="+", type=shape_of, default=list(SHAPES), help="such as 4096x11008")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=positive_number, default=3, help="runs of a short case (default: 3)")
    parser.add_argument("--time_limit", type=float, help="seconds; longer cases are estimated (default: none)")
    parser.add_argument("--json", type=Path, help="file for the figures (default: none)")
    parser.add_argument("--output", type=Path, help="file for the tables (default: none)")
    parser.add_argument("--tables", nargs="+", type=Path, help="measure nothing; tables from these files of figures")
    options = parser.parse_args()
    if options.tables:
        runs = [json.loads(path.read_text(encoding="utf-8")) for path in options.tables]
    else:
        if options.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: no GPU found; leave it out to use the CPU")
        runs = [run(options)]
    text = report(runs)
    print(text)
    if options.output is not None:
        write_whole(options.output, text)


def shape_of(text: str) -> Shape:
    rows, _, columns = text.partition("x")
    try:
        return positive_number(rows), positive_number(columns)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{text}: give rows x columns, such as 4096x11008") from error


def run(options: argparse.Namespace) -> dict:
    """Measure; returns the figures as they are saved. They are saved after each case."""
    card = (
        [torch.cuda.get_device_name()] if options.device == "cuda" else [f"{torch.get_num_threads()} threads of torch"]
    )
    figures = {
        "device": options.device,
        "machine": [*machine(("torch", "numpy")), *card],
        "load": os.getloadavg()[0],
        "date": str(date.today()),
        "command": " ".join(sys.argv[1:]),
        "results": [],
    }
    for name in options.methods:  # libraries load on first use
        timed_run(
            WHOLE[name],
            as_seen(used_by(WHOLE[name], synthetic_models((8, 24))), options.device),
            {"iterations": 1} if name in TIMED_STEPS else {},
            options.device,
        )
    for shape in sorted(options.shapes, key=lambda shape: shape[0] * shape[1]):
        models = synthetic_models(shape)
        for name in options.methods:
            known = [result for result in results_of(figures) if result.method == name]
            result = measure(WHOLE[name], models, known, options)
            print(line_of(result), flush=True)
            figures["results"].append(asdict(result))
            if options.json is not None:
                write_whole(options.json, json.dumps(figures, indent=1) + "\n")
    return figures


def synthetic_models(shape: Shape) -> list[Tensor]:
    """θ0, θ1 and θ2: float32, rounded to bfloat16."""
    generator = torch.Generator().manual_seed(shape[0] * 100000 + shape[1])

    def normal(rows: int, columns: int, deviation: float) -> Tensor:
        return torch.empty(rows, columns).normal_(0, deviation, generator=generator)

    base = normal(*shape, 0.02).bfloat16().float()
    models = [base]
    for scale in (3e-4, 5e-4):
        change = normal(*shape, scale).addmm_(normal(shape[0], 16, scale), normal(16, shape[1], 0.5))
        models.append(base.add(change).bfloat16().float())
    return models


def measure(method: Method, models: Sequence[Tensor], known: Sequence[Result], options: argparse.Namespace) -> Result:
    shape = tuple(models[0].shape)
    used = used_by(method, models)
    count = len(used) - 1
    estimate = scaled(method.name, shape, known)
    if options.time_limit is not None and estimate is not None and estimate > options.time_limit:
        return Result(method.name, shape, count, None, estimate)
    device, steps = options.device, TIMED_STEPS.get(method.name)
    more = {} if steps is None else {"iterations": steps}
    inputs = as_seen(used, device)
    seconds, memory, merged = timed_run(method, inputs, more, device)
    if seconds < LONG:  # the first run warmed up
        runs = [timed_run(method, inputs, more, device)[:2] for _ in range(options.repeats)]
        seconds, memory = statistics.median(run[0] for run in runs), max(run[1] for run in runs)
    if steps is not None:
        one, _, _ = timed_run(method, inputs, {"iterations": 1}, device)
        seconds = one + (STEPS - 1) * max(seconds - one, 0) / (steps - 1)
    difference = None
    if device == "cuda" and not known:
        reference = timed_run(method, as_seen(used, "cpu"), more, "cpu")[2]
        change = (reference - used[0]).abs().max()
        difference = float((merged.cpu() - reference).abs().max() / change)
    return Result(method.name, shape, count, seconds, None, steps, memory, difference)


def used_by(method: Method, models: Sequence[Tensor]) -> Sequence[Tensor]:
    """θ0 and one or two fine-tunes, as many as a method takes."""
    return models[: 1 + (method.models[1] or 2)]


def as_seen(models: Sequence[Tensor], device: str) -> WholeTensor:
    """Models as a formula gets them in a merge. They stay on the CPU, as they stay in files in a merge."""

    def read(model: int, as_delta: bool) -> Tensor:
        values = models[model].clone()
        return (values.sub_(models[0]) if as_delta else values).to(device)

    return WholeTensor(NAME, tuple(models[0].shape), len(models) - 1, read)


def timed_run(method: Method, inputs: WholeTensor, more: Mapping[str, int], device: str) -> tuple[float, float, Tensor]:
    """Seconds, peak memory in tensors, and the result."""
    defaults = {name: option.default for name, option in method.options.items()}
    with peak_memory(device) as peak:
        started = time.perf_counter()
        if method.in_strips is not None and device == "cpu":
            merged = merged_by_strips(method.in_strips, inputs)
        else:
            merged = method.formula(inputs, **defaults | more)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return seconds, peak[0] / (4 * math.prod(inputs.shape)), merged


@contextmanager
def peak_memory(device: str) -> Iterator[list[int]]:
    """Collects the largest number of bytes in use meanwhile beyond those at the start."""
    found = [0]
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield found
        found[0] = torch.cuda.max_memory_allocated() - before
        return
    with suppress(AttributeError):  # a C library without it
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 16)  # freed tensors go back to the system, as large ones do
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that is used again would not count
    before, done = resident(), threading.Event()

    def watch() -> None:
        while not done.wait(0.003):
            found[0] = max(found[0], resident() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def scaled(name: str, shape: Shape, known: Sequence[Result]) -> float | None:
    """Seconds for a shape, from the measured shape that is nearest in cost."""
    nearest = nearest_measured(name, shape, known)
    return None if nearest is None else nearest.seconds * cost(name, shape, nearest.models) / cost_of(nearest)


def nearest_measured(name: str, shape: Shape, known: Sequence[Result]) -> Result | None:
    measured = [result for result in known if result.method == name and result.seconds is not None]
    if not measured:
        return None

    def distance(result: Result) -> float:
        ratio = cost(name, shape, result.models) / cost_of(result)
        return 0 if tuple(result.shape) == shape else max(ratio, 1 / ratio)

    return min(measured, key=distance)


def cost(name: str, shape: Shape, models: int) -> int:
    return COSTS.get(name, DEFAULT_COST)[1](*shape, models)


def cost_of(result: Result) -> int:
    return cost(result.method, tuple(result.shape), result.models)


def results_of(figures: Mapping) -> list[Result]:
    return [Result(**{**fields, "shape": tuple(fields["shape"])}) for fields in figures["results"]]


def line_of(result: Result) -> str:
    case = f"{result.method} {as_text(result.shape)}"
    if result.seconds is None:
        return f"{case}: skipped, about {result.estimate:.0f} s by extrapolation"
    steps = f" (from {result.steps} steps)" if result.steps else ""
    difference = "" if result.difference is None else f", differs from the CPU by {result.difference:.1e}"
    return f"{case}: {result.seconds:.3g} s{steps}, peak {result.memory:.1f} tensors{difference}"


def as_text(shape: Shape) -> str:
    return f"{shape[0]} × {shape[1]}"


def report(runs: Sequence[Mapping]) -> str:
    lines = ["# Methods that see a whole tensor", ""]
    for figures in runs:
        lines += [f"`benchmark_whole_tensors.py {figures['command']}`, {figures['date']}:", ""]
        busy = "; the machine was busy, so its times are too long" if figures["load"] > BUSY else ""
        load = f"load average at the start {figures['load']:.1f}{busy}"
        lines += [f"* {line}" for line in (*figures["machine"], load)] + [""]
    lines += [
        "Two fine-tunes and a base, float32; arcee_fusion merges one. Default options. A method's time is for the",
        "arithmetic alone, without reading and writing. Memory is the peak with what was read and the result, in",
        "float32 tensors of the matrix's shape. ≈: not run, estimated from the shape above.",
        f"wudi's {STEPS} steps are scaled from {TIMED_STEPS['wudi']}.",
        "",
        "## Time and memory for one matrix",
        "",
        *matrix_table(runs),
        "",
        "## Estimates for whole models",
        "",
        *model_table(runs),
        "",
        *arithmetic(runs),
        "",
    ]
    return "\n".join(lines)


def devices(runs: Sequence[Mapping]) -> list[str]:
    return [{"cpu": "CPU", "cuda": "GPU"}[figures["device"]] for figures in runs]


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def names_in(runs: Sequence[Mapping]) -> list[str]:
    return sorted({result.method for figures in runs for result in results_of(figures)})


def matrix_table(runs: Sequence[Mapping]) -> list[str]:
    heads = [f"{device}, {what}" for device in devices(runs) for what in ("seconds", "memory")]
    heads += [f"{device} − CPU, relative" for device in devices(runs) if device == "GPU"]
    lines = [row("method", "matrix", *heads), row("---", "---", *["---:"] * len(heads))]
    shapes = sorted({result.shape for figures in runs for result in results_of(figures)}, key=lambda s: s[0] * s[1])
    for name in names_in(runs):
        for shape in shapes:
            found = [one_of(results_of(figures), name, shape) for figures in runs]
            cells = [cell for result in found for cell in (seconds_cell(result), memory_cell(result))]
            for device, result in zip(devices(runs), found, strict=True):
                if device == "GPU":
                    cells.append("" if result is None or result.difference is None else f"{result.difference:.0e}")
            lines.append(row(name, as_text(shape), *cells))
    return lines


def one_of(results: Sequence[Result], name: str, shape: Shape) -> Result | None:
    return next((result for result in results if (result.method, result.shape) == (name, shape)), None)


def seconds_cell(result: Result | None) -> str:
    if result is None:
        return ""
    return f"≈ {result.estimate:.3g}" if result.seconds is None else f"{result.seconds:.3g}"


def memory_cell(result: Result | None) -> str:
    return "" if result is None or result.memory is None else f"{result.memory:.1f}"


def model_table(runs: Sequence[Mapping]) -> list[str]:
    heads = [f"{model}, {device}" for device in devices(runs) for model in MODELS]
    lines = [row("method", *heads), row("---", *["---:"] * len(heads))]
    for name in names_in(runs):
        cells = []
        for figures in runs:
            for matrices in MODELS.values():
                terms = terms_of(name, matrices, results_of(figures))
                cells.append(duration(sum(number * seconds for number, seconds, _, _ in terms)) if terms else "")
        lines.append(row(name, *cells))
    return lines


def terms_of(name: str, matrices: Matrices, known: Sequence[Result]) -> list[tuple[int, float, Shape, Result]]:
    """For each shape that the method merges: number of matrices, seconds for one, shape, what they are scaled from."""
    terms = []
    for number, shape, _, is_linear in matrices:
        tensor = "model.layers.0.mlp.up_proj.weight" if is_linear else "model.embed_tokens.weight"
        nearest = nearest_measured(name, shape, known)
        if nearest is not None and WHOLE[name].merges(tensor, shape):
            terms.append((number, scaled(name, shape, known), shape, nearest))
    return terms


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def arithmetic(runs: Sequence[Mapping]) -> list[str]:
    """How the estimates for models are computed."""
    lines = ["Seconds for a matrix are those of the measured shape nearest in cost, times the ratio of the costs:", ""]
    for name in names_in(runs):
        lines.append(f"* {name}: cost {COSTS.get(name, DEFAULT_COST)[0]}")
        for device, figures in zip(devices(runs), runs, strict=True):
            for model, matrices in MODELS.items():
                terms = terms_of(name, matrices, results_of(figures))
                if terms:
                    parts = (
                        f"{number} × {seconds:.3g} s ({as_text(shape)}, from {as_text(nearest.shape)})"
                        for number, seconds, shape, nearest in terms
                    )
                    lines.append(f"  * {model}, {device}: {' + '.join(parts)}")
    return lines


if __name__ == "__main__":
    run_command_line(main)
