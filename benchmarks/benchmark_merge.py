"""Time and memory of each merging method, compared with plain reading and writing and with mergekit.

    python benchmarks/benchmark_merge.py --parameters 1.1 --vs mergekit --output benchmarks/merge_1.1b.md

Every merge is a fresh process, timed from start to end without the final sync of its output, which has a separate
column. The floor, in the same round, reads the inputs that the method needs once and writes the output once. In cold
rounds the system's cache does not have the inputs, in warm rounds it does.
"""

import os
import sys

if __name__ in ("__main__", "__mp_main__"):  # before the imports, which take a while
    from utils.interrupts import prepare_process

    prepare_process(__name__)

import argparse
import importlib.metadata
import json
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from benchmarks.benchmark_checkpoints import SHAPES, make_checkpoint
from benchmarks.benchmark_processes import bring_into_cache, drop_from_cache, machine, measure, sync_files
from utils.command_line import OneLineParser
from utils.errors import UserError, run_command_line
from utils.whole_files import write_json, write_whole

ROOT = Path(__file__).resolve().parent.parent
ROLES = ("instruct", "math", "code", "fourth", "fifth")
_DARE = "--merging_method_name mask_merging --use_weight_rescale"
METHODS = {  # the options of each; the equivalent method of mergekit, with its parameters, by model if one is `weight`
    "average": ("--merging_method_name average_merging", ("linear", {"weight": 0.5})),
    "average, M3": ("--merging_method_name average_merging --mixup_lambda 0.3", ("linear", {"weight": 0.3})),
    "task arithmetic": ("--merging_method_name task_arithmetic", ("task_arithmetic", {"weight": 1.0})),
    "task arithmetic, M3": (
        "--merging_method_name task_arithmetic --mixup_lambda 0.3",
        ("task_arithmetic", {"weight": 0.3}),
    ),
    "TIES": ("--merging_method_name ties_merging", ("ties", {"weight": 1.0, "density": 0.5})),
    "TIES, M3": ("--merging_method_name ties_merging --mixup_lambda 0.3", ("ties", {"weight": 0.3, "density": 0.5})),
    "DARE + average": (
        f"{_DARE} --mask_apply_method average_merging",
        ("dare_linear", {"weight": 0.5, "density": 0.8}),
    ),
    "DARE + task arithmetic": (
        f"{_DARE} --mask_apply_method task_arithmetic",
        ("dare_linear", {"weight": 1.0, "density": 0.8}),
    ),
    "DARE + TIES": (f"{_DARE} --mask_apply_method ties_merging", ("dare_ties", {"weight": 1.0, "density": 0.8})),
    "TIES per tensor": (
        "--merging_method_name ties_per_tensor --density 0.5",
        ("ties", {"weight": 1.0, "density": 0.5}),
    ),
    "SLERP": ("--merging_method_name slerp --t 0.3", ("slerp", {"t": 0.3})),
    "NuSLERP": ("--merging_method_name nuslerp", ("nuslerp", {"weight": 1.0})),
    "Multi-SLERP": ("--merging_method_name multislerp", ("multislerp", {"weight": 1.0})),
    "Karcher mean": ("--merging_method_name karcher", ("karcher", {})),
    "Model Stock": ("--merging_method_name model_stock", ("model_stock", {})),
    "RAM": ("--merging_method_name ram", ("ram", {})),
    "RAM+": ("--merging_method_name ramplus_tl", ("ramplus_tl", {})),
    "SCE": ("--merging_method_name sce --select_topk 0.5", ("sce", {"select_topk": 0.5})),
    "Breadcrumbs": (
        "--mask_strategy breadcrumbs --density 0.8 --mask_apply_method task_arithmetic",
        ("breadcrumbs", {"weight": 1.0, "density": 0.8}),
    ),
    "DELLA": (
        "--mask_strategy della --density 0.7 --mask_apply_method task_arithmetic",
        ("della_linear", {"weight": 1.0, "density": 0.7}),
    ),
}
_WITHOUT_BASE = ("average", "average, M3", "SLERP", "Karcher mean")
PACKAGES = ("numpy", "numba", "xxhash")
LONG = 60.0  # seconds after which a machine's noise averages out within a process
MERGEKIT_FLAGS = ("--lazy-unpickle", "--async-write")  # the fastest flags on a CPU, by trial


@dataclass(frozen=True)
class Case:
    """A method on models of one size, its files in the cache (warm) or not (cold)."""

    method: str
    state: str


@dataclass
class Round:
    """One side of a case, measured once. `sync` in seconds."""

    wall: float
    sync: float
    own_memory: int
    resident: int
    read: int
    written: int
    from_disk: int


@dataclass(frozen=True)
class Bench:
    """The folders of a benchmark: models by role; the base has the role `base`."""

    folder: Path
    models: dict[str, Path]
    mergekit: Path | None

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def inputs(self, case: Case) -> list[Path]:
        """The weight files that the method needs."""
        reads_base = case.method not in _WITHOUT_BASE
        return [
            file
            for role, folder in self.models.items()
            if role != "base" or reads_base
            for file in sorted(folder.glob("*.safetensors"))
        ]

    def output_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.models["base"].glob("*.safetensors"))

    def fresh_out(self) -> Path:
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        return self.out


def main() -> None:
    parser = OneLineParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--parameters", choices=SHAPES, default="1.1", help="billions of parameters (default: 1.1)")
    parser.add_argument("--models", type=int, choices=range(2, 6), default=2, help="fine-tunes (default: 2)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument("--states", nargs="+", choices=("cold", "warm"), default=["cold", "warm"])
    parser.add_argument("--repeat", type=int, default=3, help="rounds; tables have medians (default: 3)")
    parser.add_argument("--vs", choices=("mergekit",), help="also measure mergekit, warm, in a separate environment")
    parser.add_argument("--work_dir", type=Path, help="folder for the models (default: a temporary one)")
    parser.add_argument("--keep", action="store_true", help="keep the models")
    parser.add_argument("--output", type=Path, help="file for the table; all figures go next to it as JSON")
    options = parser.parse_args()
    if not sys.platform.startswith("linux"):
        raise UserError("benchmarks are for Linux: they read /proc")

    if options.vs and (options.models != 2 or "warm" not in options.states):
        raise UserError("--vs mergekit compares warm merges of two models; see --models and --states")
    work = options.work_dir or Path(tempfile.mkdtemp(prefix="benchmark_merge_"))
    folder = work / f"{options.parameters}_{options.models}"
    try:
        bench = prepare(folder, options)
        warm_up(bench, options.methods)
        rounds = run_rounds(bench, options)
        shutil.rmtree(bench.out)
        text = report(rounds, bench, options)
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)
            if options.work_dir is None:
                shutil.rmtree(work, ignore_errors=True)
    print(text)
    if options.output is not None:
        write_whole(options.output, text)
        named = [
            {**asdict(case), "side": side, "rounds": list(map(asdict, measured))}
            for (case, side), measured in rounds.items()
        ]
        write_json(options.output.with_suffix(".json"), {"machine": machine(PACKAGES), "cases": named})


def prepare(folder: Path, options: argparse.Namespace) -> Bench:
    """Make the models, and mergekit's environment if requested."""
    shape = SHAPES[options.parameters]
    roles = ("base", *ROLES[: options.models])
    missing = [role for role in roles if not (folder / role).exists()]
    needed = 2 * shape.parameters * (len(missing) + 1) + (1 << 28)
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < needed:
        raise UserError(
            f"--work_dir {folder.parent}: {needed / 1e9:.0f} GB are needed there; choose another folder or a smaller "
            "--parameters"
        )
    for role in missing:
        print(f"making {role} ({shape.parameters / 1e9:.2f} billion parameters)", file=sys.stderr)
        make_checkpoint(folder / role, shape, roles.index(role))
    mergekit = None
    if options.vs:
        mergekit = folder.parent / "mergekit_environment"
        if not (mergekit / "bin" / "mergekit-yaml").exists():
            print("installing mergekit", file=sys.stderr)
            subprocess.run([sys.executable, "-m", "venv", mergekit], check=True)
            install = [mergekit / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
            version = importlib.metadata.version("torch").split("+")[0]
            subprocess.run([*install, f"torch=={version}"], check=True)
            subprocess.run([*install, "mergekit"], check=True)
    return Bench(folder, {role: folder / role for role in roles}, mergekit)


def warm_up(bench: Bench, methods: Sequence[str]) -> None:
    """Merge tiny models once, because the first merge on a machine compiles the kernels."""
    with tempfile.TemporaryDirectory() as folder:
        models = {role: Path(folder) / role for role in bench.models}
        for number, path in enumerate(models.values()):
            make_checkpoint(path, SHAPES["tiny"], number)
        tiny = Bench(Path(folder), models, None)
        for method in methods:
            measure(our_command(tiny, Case(method, "warm")), tiny.fresh_out())


def run_rounds(bench: Bench, options: argparse.Namespace) -> dict[tuple[Case, str], list[Round]]:
    """For every method and state, measure the floor, our merge and mergekit one after another; long ones only once."""
    rounds: dict[tuple[Case, str], list[Round]] = {}
    cases = [Case(method, state) for state in options.states for method in options.methods]
    for number in range(options.repeat):
        for case in cases:
            sides: dict[str, Callable[[Bench, Case], list[object]]] = {"floor": floor_command, "ours": our_command}
            if bench.mergekit is not None and case.state == "warm":
                sides["mergekit"] = mergekit_command
            for side, command in sides.items():
                earlier = rounds.get((case, side), [])
                if earlier and earlier[0].wall > LONG:
                    continue
                if case.state == "cold":
                    drop_from_cache(bench.inputs(case))
                else:
                    bring_into_cache(bench.inputs(case))
                done = run_side(bench, command(bench, case), side)
                rounds.setdefault((case, side), []).append(done)
                line = f"{number + 1}: {case.method}, {case.state}, {side}: {done.wall:.1f} s, sync {done.sync:.1f} s"
                print(line, file=sys.stderr)
    return rounds


def run_side(bench: Bench, command: list[object], side: str) -> Round:
    os.sync()
    out = bench.fresh_out()
    done = measure(command, out)
    if side == "ours":
        record = next(out.rglob("merge_record.json"))
        sync = json.loads(record.read_text())["sync_seconds"]
        wall = done.wall - sync
    else:
        wall, sync = done.wall, sync_files(out)
    check_output(out, bench.output_bytes())
    return Round(wall, sync, done.own_memory, done.resident, done.read, done.written, done.from_disk)


def check_output(out: Path, expected: int) -> None:
    """Raise RuntimeError unless the written weights are as large as a model (headers may differ)."""
    files = {file.stat().st_ino: file.stat().st_size for file in [*out.rglob("*.safetensors"), *out.glob("floor")]}
    if abs(sum(files.values()) - expected) > 1 << 20:
        raise RuntimeError(f"{sum(files.values())} bytes of weights were written, but a model has {expected}")


def our_command(bench: Bench, case: Case) -> list[object]:
    options = METHODS[case.method][0].split()
    roles = [role for role in bench.models if role != "base"]
    if "--mixup_lambda" in options and len(roles) > 2:
        options[options.index("--mixup_lambda") + 1 :] = [str(1 / len(roles))] * len(roles)
    command = [sys.executable, ROOT / "merge_llms_instruct_math_code.py", "--merge_only", "--output_dir", bench.out]
    command += ["--pretrained_model", bench.models["base"]]
    return [*command, "--models", *(f"{role}={bench.models[role]}" for role in roles), *options]


def floor_command(bench: Bench, case: Case) -> list[object]:
    script = ROOT / "benchmarks" / "benchmark_floor.py"
    return [sys.executable, script, bench.out / "floor", bench.output_bytes(), *bench.inputs(case)]


def mergekit_command(bench: Bench, case: Case) -> list[object]:
    method, parameters = METHODS[case.method][1]
    models = [{"model": str(bench.models[role])} for role in ROLES[:2]]
    recipe = {"merge_method": method, "models": models, "dtype": "float16", "parameters": {"normalize": False}}
    if "weight" in parameters:
        weight = parameters["weight"]
        for model, own in zip(models, (weight, 1 - weight if weight < 1 else weight), strict=True):
            model["parameters"] = {**parameters, "weight": own}
    else:
        recipe["parameters"] |= parameters
    if method == "slerp":
        recipe["base_model"] = models[0]["model"]
    elif case.method not in _WITHOUT_BASE:
        recipe["base_model"] = str(bench.models["base"])
    path = bench.folder / "mergekit.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return [bench.mergekit / "bin" / "mergekit-yaml", path, bench.out / "merged", *MERGEKIT_FLAGS]


def report(rounds: dict[tuple[Case, str], list[Round]], bench: Bench, options: argparse.Namespace) -> str:
    """The machine and the tables, as Markdown."""
    shape = SHAPES[options.parameters]
    heading = (
        f"# Merging {options.models} fine-tunes and a base of {shape.parameters / 1e9:.2f} billion parameters (float16)"
    )
    about = "\n".join(f"* {line}" for line in machine(PACKAGES))
    made = "python benchmarks/benchmark_merge.py " + " ".join(_without_places(sys.argv[1:]))
    lines = [
        heading,
        "",
        f"Made by `{made}` on {date.today()}; medians of {options.repeat}; merges of more than {LONG:.0f} s ran once.",
        "",
        about,
        "",
        "Seconds are from process start to process end, without the final sync of the output (a separate column).",
        "Memory is the peak of private memory, in MB (10^6 bytes). Read and written: GB (10^9 bytes) requested.",
        "The floor reads the inputs that the method needs once and writes the output once, with positioned reads and",
        "writes and one thread per core, in the same round. Kernels were compiled before, on tiny models.",
        "",
        *_table(rounds),
    ]
    if bench.mergekit is not None:
        version = _mergekit_version(bench.mergekit)
        lines += ["", f"mergekit {version}, `mergekit-yaml` with {' '.join(MERGEKIT_FLAGS)}:", "", *_versus(rounds)]
    estimate = _estimate(rounds, shape.parameters)
    return "\n".join([*lines, *(["", estimate] if estimate else []), ""])


def _without_places(words: Sequence[str]) -> list[str]:
    """A command line without folders of this machine."""
    kept, skip = [], False
    for word in words:
        if skip or word == "--work_dir":
            skip = not skip
        else:
            kept.append(f"'{word}'" if " " in word else word)
    return kept


def _median(rounds: Sequence[Round], name: str) -> float:
    return statistics.median(getattr(one, name) for one in rounds)


def _table(rounds: dict[tuple[Case, str], list[Round]]) -> list[str]:
    lines = [
        "| method | files | seconds | floor | ratio | sync | floor's sync | memory | resident | read | written |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case, side in rounds:
        if side == "ours":
            ours, floor = rounds[case, "ours"], rounds[case, "floor"]
            wall, least, memory = _median(ours, "wall"), _median(floor, "wall"), _median(ours, "own_memory")
            lines.append(
                f"| {case.method} | {case.state} | {wall:.1f} | {least:.1f} | {wall / least:.2f} | "
                f"{_median(ours, 'sync'):.1f} | {_median(floor, 'sync'):.1f} | {memory / 1e6:.0f} | "
                f"{_median(ours, 'resident') / 1e6:.0f} | {_median(ours, 'read') / 1e9:.1f} | "
                f"{_median(ours, 'written') / 1e9:.1f} |"
            )
    return lines


def _versus(rounds: dict[tuple[Case, str], list[Round]]) -> list[str]:
    lines = [
        "| method | files | mergekit's | seconds | times ours | memory | times ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for case, side in rounds:
        if side == "mergekit":
            ours, theirs = rounds[case, "ours"], rounds[case, "mergekit"]
            wall, memory = _median(theirs, "wall"), _median(theirs, "own_memory")
            faster, larger = wall / _median(ours, "wall"), memory / _median(ours, "own_memory")
            lines.append(
                f"| {case.method} | {case.state} | {METHODS[case.method][1][0]} | {wall:.1f} | "
                f"{faster:.1f} | {memory / 1e6:.0f} | {larger:.1f} |"
            )
    return lines


def _estimate(rounds: dict[tuple[Case, str], list[Round]], parameters: int) -> str:
    """The time for larger models, from the cost per parameter; empty for models so small that start-up dominates."""
    if parameters < 1e9:
        return ""
    sizes = [size for size in (7, 13, 70) if size * 1e9 > 1.5 * parameters]
    estimates = []
    for method in ("task arithmetic", "TIES"):
        ours = rounds.get((Case(method, "cold"), "ours"))
        if ours:
            per_parameter = _median(ours, "wall") / parameters
            minutes = [f"{size}B {per_parameter * size * 1e9 / 60:.1f} min" for size in sizes]
            estimates.append(f"{method} {', '.join(minutes)}")
    return f"Estimated from the cold seconds per parameter: {'; '.join(estimates)}." if estimates else ""


def _mergekit_version(environment: Path) -> str:
    code = "import importlib.metadata as m; print(m.version('mergekit'))"
    python = environment / "bin" / "python"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(run_command_line(main))
