"""What cells would take: seconds, GPU-hours, disk. Of the kind that tells a night from a month, not 3 hours from 4.

A cell of a kind that was run before, into the same results' folder, takes what those took on average. Otherwise
generation is taken to be bound by memory bandwidth: a step reads the weights once and gives a token to each of the
sequences that are decoded together, at half of the bandwidth's speed; merging takes what it took on two cores.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean

from scripts.paper_tables.cell import MAIN_JOB, Cell, all_states, cell_of_text
from scripts.paper_tables.commands import (
    ROOT,
    TINY_EXAMPLES,
    TINY_ZOO,
    Setting,
    cell_commands,
    shell_words,
)
from scripts.paper_tables.jobs import DONE, is_done
from scripts.paper_tables.machine import Machine
from utils.model_folders import FINETUNED_MODELS, PRETRAINED_MODEL

PAPER_MODEL_BYTES = 26_000_000_000  # 13 billion parameters in float16
# Seconds per GB of a merged model, on two cores, from files that are not cached (benchmarks/merge_1.1b.md).
MERGE_SECONDS_PER_GB = {"average_merging": 2.3, "task_arithmetic": 2.7, "ties_merging": 5.8}
MASKED_MERGE_SECONDS_PER_GB = {"average_merging": 3.7, "task_arithmetic": 4.2, "ties_merging": 6.6}
# Prompts of a task, and new tokens of an answer of usual length.
PROMPTS_AND_TOKENS = {
    "alpaca_eval": (805, 400),
    "gsm8k": (1319, 200),
    "MATH": (5000, 300),
    "human_eval": (164, 250),
    "mbpp": (500, 150),
    "instruction_following": (200, 500),
    "coding": (128, 500),
    "typos": (50, 300),
    # An attack asks the whole set some 40 prompts; an answer is a word or two.
    "sst2": (872 * 40, 3),
    "cola": (516 * 40, 3),
}
PROMPTS_AND_TOKENS_OF_ANOTHER = (1000, 300)  # a task of one's own
GPU_GB_PER_SECOND = {
    "H200": 4800,
    "H100": 3350,
    "A100": 1555,
    "L40S": 864,
    "A6000": 768,
    "A10": 600,
    "V100": 900,
    "4090": 1008,
    "3090": 936,
    "T4": 300,
}
ASSUMED_GPU = "A100"  # for the GPU-hours, where there is none
UNKNOWN_GPU_GB_PER_SECOND = 600
CPU_GB_PER_SECOND = 20
SEQUENCES_AT_ONCE = 64
START_SECONDS = {"gpu": 60, "cpu": 8}
LOAD_GB_PER_SECOND = 1.0


@dataclass(frozen=True)
class Estimate:
    """`seconds` of a cell, and whether they are those of cells that were run."""

    seconds: float
    measured: bool


def print_plan(
    jobs: Sequence[Sequence[Cell]], setting: Setting, machine: Machine, jobs_at_once: int, delete_merged_models: bool
) -> None:
    """Print every command that would run, with its time, and what all of them would take."""
    known = measured_seconds(setting)
    on_gpus = machine if machine.gpus else replace(machine, gpus=(ASSUMED_GPU,))
    seconds, gpu_seconds, merges, number = 0.0, 0.0, 0, 0
    for job in jobs:
        made = False
        for cell in job:
            if is_done(cell, setting):
                print(f"# done: {cell.name}")
                continue
            of_cell = estimate_cell(cell, setting, machine, known, merged=made)
            commands = cell_commands(cell, setting)
            print(f"# {', '.join(cell.tables)}: about {duration(of_cell.seconds)}{' (measured)' * of_cell.measured}")
            for words in commands[1:] if made and len(commands) > 1 else commands:
                print(shlex.join(shell_words(words)))
            made = True
            seconds += of_cell.seconds
            gpu_seconds += estimate_cell(cell, setting, on_gpus, known if machine.gpus else {}, True).seconds * (
                setting.tensor_parallel_size or len(on_gpus.gpus)
            )
            number += 1
        merges += made
    gigabytes = model_bytes(setting) / 1e9
    kept = min(jobs_at_once, merges) if delete_merged_models else merges
    print(f"\n{number} cells of {merges} merges to run, {jobs_at_once} at a time, on {describe(machine)}:")
    print(f"  time      {duration(seconds / jobs_at_once)}")
    print(f"  GPU-hours {gpu_seconds / 3600:.1f}{'' if machine.gpus else f', were they run on {ASSUMED_GPU}s'}")
    print(
        f"  disk      {kept * gigabytes:.1f} GB of merged models ({gigabytes:.3g} GB each), "
        f"beside the {4 * gigabytes:.3g} GB of the four models merged; {machine.free_disk / 1e9:.0f} GB are free"
    )
    if not delete_merged_models and kept * gigabytes * 1e9 > machine.free_disk:
        print("  That is more than is free: --delete_merged_models keeps the weights of none but the merges at work.")
    print("Rough figures, from bandwidth and usual lengths; measured ones for cells like those that were run before.")


def estimate_cell(cell: Cell, setting: Setting, machine: Machine, known: dict[tuple, float], merged: bool) -> Estimate:
    """What a cell takes; `merged`: its model is there by then."""
    seconds = known.get(_kind(cell))
    if seconds is not None:
        return Estimate(seconds, True)
    gigabytes = model_bytes(setting) / 1e9
    start = START_SECONDS["gpu" if machine.gpus else "cpu"] + gigabytes / LOAD_GB_PER_SECOND
    tokens = sum(prompts * length for prompts, length in work_of_cell(cell, setting))
    steps_per_second = 0.5 * bandwidth(machine, setting) / gigabytes
    generation = start + tokens / SEQUENCES_AT_ONCE / steps_per_second
    return Estimate(generation + (0 if merged else merge_seconds(cell, setting)), False)


def measured_seconds(setting: Setting) -> dict[tuple, float]:
    """The mean seconds of cells that were done, by kind."""
    found: dict[tuple, list[float]] = {}
    for state in all_states(setting.results_dir):
        if state.get("status") == DONE and "seconds" in state:
            found.setdefault(_kind(cell_of_text(state["cell"])), []).append(state["seconds"])
    return {kind: mean(seconds) for kind, seconds in found.items()}


def _kind(cell: Cell) -> tuple:
    """What cells have in common that take about as long."""
    roles = [word for word in cell.merge if word.startswith("--merge_")]
    return (cell.words, *(roles if cell.script == MAIN_JOB else ()))


def work_of_cell(cell: Cell, setting: Setting) -> list[tuple[int, int]]:
    """The prompts and the new tokens of each task of a cell."""
    work = [PROMPTS_AND_TOKENS.get(task, PROMPTS_AND_TOKENS_OF_ANOTHER) for task in cell.tasks]
    return [(min(prompts, TINY_EXAMPLES), min(tokens, 60)) for prompts, tokens in work] if setting.is_tiny else work


def merge_seconds(cell: Cell, setting: Setting) -> float:
    method = next(
        (word for option, word in zip(cell.merge, cell.merge[1:], strict=False) if _names_method(option, word)), None
    )
    table = MASKED_MERGE_SECONDS_PER_GB if "mask_merging" in cell.merge else MERGE_SECONDS_PER_GB
    return table.get(method or "average_merging", max(table.values())) * model_bytes(setting) / 1e9


def _names_method(option: str, word: str) -> bool:
    return option in ("--merging_method_name", "--mask_apply_method") and word != "mask_merging"


def bandwidth(machine: Machine, setting: Setting) -> float:
    """GB per second of the memory that one job's weights lie in."""
    if not machine.gpus:
        return CPU_GB_PER_SECOND
    of_one = next((speed for name, speed in GPU_GB_PER_SECOND.items() if name in machine.gpus[0]), None)
    return (of_one or UNKNOWN_GPU_GB_PER_SECOND) * (setting.tensor_parallel_size or len(machine.gpus))


def model_bytes(setting: Setting) -> int:
    """The size of a merged model: that of the pretrained one where it lies here."""
    if setting.is_tiny:
        folder = ROOT / TINY_ZOO / "base"
    else:
        folder = next(
            (
                ROOT / (setting.models or "") / name
                for name in (PRETRAINED_MODEL, *FINETUNED_MODELS.values())
                if (ROOT / (setting.models or "") / name).is_dir()
            ),
            None,
        )
    if folder is None:
        return PAPER_MODEL_BYTES
    files = list(folder.glob("*.safetensors")) or list(folder.glob("pytorch_model*.bin"))
    return sum(file.stat().st_size for file in files) or PAPER_MODEL_BYTES


def describe(machine: Machine) -> str:
    gpus = f"{len(machine.gpus)} x {machine.gpus[0]}" if machine.gpus else "no GPU"
    return f"{machine.cores} cores, {gpus}"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 360_000 else f"{seconds / 86400:.0f} days"
