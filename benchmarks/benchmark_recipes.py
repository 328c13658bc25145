"""Time and memory of mergekit's recipes here and with mergekit, in one run, with the models' files in the cache.

    python benchmarks/benchmark_recipes.py --work_dir DIR --mergekit ENV/bin/mergekit-yaml --output recipes_1.1b.md

Every merge is a fresh process, timed from start to end without the final sync of its output.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import yaml

from benchmarks.benchmark_checkpoints import SHAPES, make_checkpoint
from benchmarks.benchmark_processes import Measured, bring_into_cache, machine, measure
from utils.command_line import OneLineParser, positive_number
from utils.errors import run_command_line
from utils.whole_files import write_whole

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = ROOT / "scripts" / "tiny_zoo" / "base"
ROLES = ("base", "instruct", "math")
PACKAGES = ("torch", "numpy", "numba")


def models(**parameters: object) -> list[dict]:
    """Entries of both fine-tunes with these parameters."""
    return [{"model": role, **({"parameters": parameters} if parameters else {})} for role in ROLES[1:]]


def with_base(method: str, of_models: list[dict], **shared: object) -> dict:
    return {"merge_method": method, "base_model": "base", "models": of_models, "parameters": shared}


def recipes(layers: int) -> dict[str, dict]:
    """Recipes by name, with roles for models; `layers` is the models' number of layers."""
    by_layer = [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
        {"value": 0.5},
    ]
    whole = [{"model": role, "layer_range": [0, layers]} for role in ("instruct", "math")]
    stack = [
        {"sources": [{"model": "instruct", "layer_range": [0, layers * 3 // 4]}]},
        {"sources": [{"model": "math", "layer_range": [layers // 4, layers]}]},
    ]
    slerp = {"slices": [{"sources": whole}], "base_model": "instruct", "parameters": {"t": by_layer}}
    return {
        "linear": {"merge_method": "linear", "models": models(weight=0.5)},
        "task_arithmetic": with_base("task_arithmetic", models(weight=0.5)),
        "slerp, gradients and filters": {"merge_method": "slerp", **slerp},
        "ties": with_base("ties", models(weight=0.5, density=0.5), normalize=True),
        "dare_ties": with_base("dare_ties", models(weight=0.5, density=0.5)),
        "nuslerp": {"merge_method": "nuslerp", "models": models(weight=0.5)},
        "multislerp": with_base("multislerp", models(weight=0.5)),
        "karcher": {"merge_method": "karcher", "models": models()},
        "nearswap": with_base("nearswap", models()[:1], t=0.001),
        "arcee_fusion": with_base("arcee_fusion", models()[:1]),
        "ram": with_base("ram", models()),
        "ramplus_tl": with_base("ramplus_tl", models()),
        "sce": with_base("sce", models(), select_topk=0.5),
        "model_stock": with_base("model_stock", models()),
        "breadcrumbs": with_base("breadcrumbs", models(weight=0.5, density=0.5, gamma=0.01)),
        "della": with_base("della", models(weight=0.5, density=0.5, epsilon=0.1)),
        "passthrough, stacked": {"merge_method": "passthrough", "slices": stack},
    }


def main() -> None:
    parser = OneLineParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--parameters", choices=SHAPES, default="1.1", help="billions of parameters (default: 1.1)")
    parser.add_argument("--work_dir", type=Path, required=True, help="folder for the models, which are kept")
    parser.add_argument("--mergekit", type=Path, help="mergekit-yaml of another environment (default: not measured)")
    parser.add_argument(
        "--repeat", type=positive_number, default=3, help="runs of each; the median counts (default: 3)"
    )
    parser.add_argument("--recipes", nargs="+", help="names (default: all)")
    parser.add_argument("--output", type=Path, help="file for the table")
    options = parser.parse_args()
    options.work_dir = options.work_dir.resolve()
    for number, role in enumerate(ROLES):
        if not (options.work_dir / role).exists():
            make_checkpoint(options.work_dir / role, SHAPES[options.parameters], number)
        for file in TOKENIZER.glob("tokenizer*.json"):  # mergekit needs one
            shutil.copyfile(file, options.work_dir / role / file.name)
    config = json.loads((options.work_dir / "base" / "config.json").read_text())
    chosen = {
        name: recipe
        for name, recipe in recipes(config["num_hidden_layers"]).items()
        if not options.recipes or name in options.recipes
    }
    rows = {}
    for name, recipe in chosen.items():
        rows[name] = compared(name, recipe, options)
        if options.output is not None:  # after each, because all take a quarter of an hour
            write_whole(options.output, table(rows, options))
    print(table(rows, options))


def compared(name: str, recipe: dict, options: argparse.Namespace) -> dict[str, list[Measured]]:
    """A recipe's runs, ours and mergekit's in turn."""
    file = options.work_dir / "recipe.yml"
    text = yaml.safe_dump({**recipe, "dtype": "float16"}, sort_keys=False)
    for role in ROLES:
        text = text.replace(f"model: {role}\n", f"model: {options.work_dir / role}\n")
    file.write_text(text, encoding="utf-8")
    ours = [sys.executable, "-m", "model_merging_methods", "merge", file]
    run(ours, options)  # it may compile kernels
    found: dict[str, list[Measured]] = {}
    for _ in range(options.repeat):
        found.setdefault("ours", []).append(run(ours, options))
        if options.mergekit is not None:
            theirs = [options.mergekit.absolute(), file]
            found.setdefault("mergekit", []).append(run(theirs, options, ["--lazy-unpickle"]))
    for side, runs in found.items():
        print(f"{name}, {side}: {', '.join(f'{one.wall:.1f} s' for one in runs)}", file=sys.stderr)
    return found


def run(command: Sequence[object], options: argparse.Namespace, more: Sequence[str] = ()) -> Measured:
    out = options.work_dir / "out"
    shutil.rmtree(out, ignore_errors=True)
    os.sync()  # no run pays for the writes of the one before
    bring_into_cache([file for role in ROLES for file in (options.work_dir / role).glob("*.safetensors")])
    return measure([*command, out, *more], options.work_dir)


def table(rows: dict[str, dict[str, list[Measured]]], options: argparse.Namespace) -> str:
    lines = [
        f"# Recipes, {options.parameters} billion parameters",
        "",
        *(f"* {line}" for line in machine(PACKAGES)),
        f"* {date.today()}; float16, two fine-tunes and a base; files in the system's cache; medians of "
        f"{options.repeat} runs each, in turn; mergekit 0.1.5 with --lazy-unpickle",
        "",
        "Memory is private memory (no mapped or cached files).",
        "",
        "| recipe | seconds | memory, MB | mergekit, seconds | memory, MB | times as fast | share of the memory |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, sides in rows.items():
        seconds, memory = figures(sides["ours"])
        cells = [name, f"{seconds:.1f}", f"{memory / 1e6:.0f}"]
        if "mergekit" in sides:
            their_seconds, their_memory = figures(sides["mergekit"])
            cells += [f"{their_seconds:.1f}", f"{their_memory / 1e6:.0f}"]
            cells += [f"{their_seconds / seconds:.1f}", f"{memory / their_memory:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figures(runs: Sequence[Measured]) -> tuple[float, float]:
    return statistics.median(one.wall for one in runs), statistics.median(one.own_memory for one in runs)


if __name__ == "__main__":
    run_command_line(main)
