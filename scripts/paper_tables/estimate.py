"""What cells would take: seconds, GPU-hours, disk. Of the kind that tells a night from a month, not 3 hours from 4.

A cell of a kind that was run before, into the same results' folder, takes what those took on average. Otherwise
prompts are read at two operations for each parameter and token, at a share of the machine's peak. Answers are written
at that speed too, or at the memory's where it is lower: a step reads the weights once, at half of the bandwidth, and
gives a token to each of the sequences that are decoded together. Merging takes what it took on two cores.
"""

import importlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean

from promptbench.prompt_accuracy import SAMPLING
from promptbench.prompt_task import PromptTask
from promptbench.prompt_words import PromptWords
from scripts.paper_tables.cell import MAIN_JOB, STATES, Cell, cell_of_text
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
from utils.errors import UserError
from utils.json_files import read_json_object
from utils.model_folders import FINETUNED_MODELS, PRETRAINED_MODEL

PAPER_MODEL_BYTES = 26_000_000_000  # 13 billion parameters in float16
# Seconds per GB of a merged model, on two cores, from files that are not cached (benchmarks/merge_1.1b.md).
MERGE_SECONDS_PER_GB = {"average_merging": 2.3, "task_arithmetic": 2.7, "ties_merging": 5.8}
MASKED_MERGE_SECONDS_PER_GB = {"average_merging": 3.7, "task_arithmetic": 4.2, "ties_merging": 6.6}
# Of a task its prompts, the tokens of one with the example in it (characters of the sets, at 3.6 a token; LiveBench's
# last two by analogy), and the new tokens of an answer of usual length. An attack asks all of them many times.
WORK_OF_TASK = {
    "alpaca_eval": (805, 95, 400),
    "gsm8k": (1319, 110, 200),
    "MATH": (5000, 95, 300),
    "human_eval": (164, 165, 250),
    "mbpp": (500, 125, 150),
    "instruction_following": (200, 510, 500),
    "coding": (128, 500, 500),
    "typos": (50, 500, 300),
    "sst2": (872, 72, 20),
    "cola": (516, 79, 20),
}
WORK_OF_ANOTHER = (1000, 150, 300)  # a task of one's own
# Prompts of an attack on whole prompts, the clean one included; of others, candidates for a word. A masked language
# model has 48 guesses, of which the whole words that are near enough are tried.
WHOLE_PROMPTS = {"stresstest": 4, "semantic": 11, "checklist": 51}
WORD_CANDIDATES = {"deepwordbug": 4, "textbugger": 8, "bertattack": 40, "textfooler": 40}
# GB per second of a GPU's memory, and its peak with 16-bit numbers, in 10^12 operations per second.
GPU_SPEEDS = {
    "H200": (4800, 989),
    "H100": (3350, 989),
    "A100": (1555, 312),
    "L40S": (864, 362),
    "A6000": (768, 155),
    "A10": (600, 125),
    "V100": (900, 125),
    "4090": (1008, 165),
    "3090": (936, 71),
    "T4": (300, 65),
}
ASSUMED_GPU = "A100"  # for the GPU-hours, where there is none
UNKNOWN_GPU_SPEEDS = (600, 100)
SHARE_OF_PEAK = 0.4
CPU_GB_PER_SECOND = 20
# What a core comes to: 13 billion parameters on two of them give a token every second or two (docs/memory_and_disk.md).
CPU_CORE_OPERATIONS_PER_SECOND = 10e9
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
        shown: set[tuple[str, ...]] = set()  # a command that several cells of a job need is run once
        for cell in job:
            if is_done(cell, setting):
                print(f"# done: {cell.name}")
                continue
            of_cell = estimate_cell(cell, setting, machine, known, merged=made)
            print(f"# {', '.join(cell.tables)}: about {duration(of_cell.seconds)}{' (measured)' * of_cell.measured}")
            for words in cell_commands(cell, setting):
                if tuple(words) not in shown:
                    print(shlex.join(shell_words(words)))
                shown.add(tuple(words))
            made = True
            seconds += of_cell.seconds
            on_gpus_known = known if machine.gpus else {}
            of_gpus = estimate_cell(cell, setting, on_gpus, on_gpus_known, merged=True)
            gpu_seconds += of_gpus.seconds * gpus_per_job(on_gpus, setting)
            number += 1
        merges += made
    gigabytes = model_bytes(setting) / 1e9
    kept = min(jobs_at_once, merges) if delete_merged_models else merges
    each = f", {gpus_per_job(machine, setting)} GPUs each" if machine.gpus else ""
    print(f"\n{number} cells of {merges} merges to run, {jobs_at_once} at a time{each}, on {describe(machine)}:")
    print(f"  time      {duration(seconds / jobs_at_once)}")
    print(f"  GPU-hours {gpu_seconds / 3600:.1f}{'' if machine.gpus else f', were they run on {ASSUMED_GPU}s'}")
    print(
        f"  disk      {kept * gigabytes:.1f} GB of merged models ({gigabytes:.3g} GB each), "
        f"beside the {4 * gigabytes:.3g} GB of the four models merged; {machine.free_disk / 1e9:.0f} GB are free"
    )
    if not delete_merged_models and kept * gigabytes * 1e9 > machine.free_disk:
        print("  That is more than is free: --delete_merged_models keeps the weights of none but the merges at work.")
    print("Rough figures, from speeds and usual lengths; measured ones for cells like those that were run before.")
    if any(cell.attacks for job in jobs for cell in job):
        print(
            f"A merge that does not stop after its label writes up to {SAMPLING.max_tokens} tokens to each attacked "
            f"prompt, where {WORK_OF_TASK['sst2'][2]} are reckoned with."
        )


def estimate_cell(cell: Cell, setting: Setting, machine: Machine, known: dict[tuple, float], merged: bool) -> Estimate:
    """What a cell takes; `merged`: its model is there by then."""
    seconds = known.get(_kind(cell))
    if seconds is not None:
        return Estimate(seconds, True)
    gigabytes = model_bytes(setting) / 1e9
    start = START_SECONDS["gpu" if machine.gpus else "cpu"] + gigabytes / LOAD_GB_PER_SECOND
    seconds = start + sum(answer_seconds(*work, setting, machine) for work in work_of_cell(cell, setting))
    return Estimate(seconds + (0 if merged else merge_seconds(cell, setting)), False)


def answer_seconds(prompts: int, read: int, written: int, setting: Setting, machine: Machine) -> float:
    """What it takes to answer so many prompts, each of so many tokens `read` and new ones `written`."""
    size = model_bytes(setting)
    # Two operations for each parameter, which has two bytes.
    per_token = size / operations_per_second(machine, setting)
    step = size / 1e9 / (0.5 * bandwidth(machine, setting))
    return prompts * (read * per_token + written * max(per_token, step / SEQUENCES_AT_ONCE))


def measured_seconds(setting: Setting) -> dict[tuple, float]:
    """The mean seconds of cells that were done, by kind."""
    found: dict[tuple, list[float]] = {}
    for path in (setting.results_dir / STATES).glob("*.json"):
        try:
            state = read_json_object(path, "")
            if state["status"] == DONE:
                found.setdefault(_kind(cell_of_text(state["cell"])), []).append(float(state["seconds"]))
        except (UserError, KeyError, ValueError, TypeError):
            continue  # told where scores are collected
    return {kind: mean(seconds) for kind, seconds in found.items()}


def _kind(cell: Cell) -> tuple:
    """What cells have in common that take about as long."""
    roles = [word for word in cell.merge if word.startswith("--merge_")]
    return (cell.words, *(roles if cell.script == MAIN_JOB else ()))


def work_of_cell(cell: Cell, setting: Setting) -> list[tuple[int, int, int]]:
    """Of each task of a cell: prompts, and the tokens of a prompt and of its answer."""
    work = []
    for task in cell.tasks:
        examples, read, written = WORK_OF_TASK.get(task, WORK_OF_ANOTHER)
        if setting.is_tiny:
            examples, written = min(examples, TINY_EXAMPLES), min(written, 60)
        if cell.attacks:
            attacked = importlib.import_module(f"promptbench.{task}").TASK
            examples *= sum(prompts_of_attack(attacked, attack) for attack in cell.attacks)
        work.append((examples, read, written))
    return work


def prompts_of_attack(task: PromptTask, attack: str) -> int:
    """How many prompts an attack usually asks: the clean one, those without a word, and each word's candidates."""
    if attack in WHOLE_PROMPTS:
        return WHOLE_PROMPTS[attack]
    words = len(PromptWords.of(task.prompt).modifiable(task.protected_words))
    return 1 + words * (1 + WORD_CANDIDATES.get(attack, max(WORD_CANDIDATES.values())))


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
    return _gpu_speeds(machine)[0] * gpus_per_job(machine, setting)


def operations_per_second(machine: Machine, setting: Setting) -> float:
    """What one job comes to."""
    if not machine.gpus:
        return CPU_CORE_OPERATIONS_PER_SECOND * machine.cores
    return SHARE_OF_PEAK * 1e12 * _gpu_speeds(machine)[1] * gpus_per_job(machine, setting)


def gpus_per_job(machine: Machine, setting: Setting) -> int:
    return setting.tensor_parallel_size or len(machine.gpus)


def _gpu_speeds(machine: Machine) -> tuple[float, float]:
    return next((speeds for name, speeds in GPU_SPEEDS.items() if name in machine.gpus[0]), UNKNOWN_GPU_SPEEDS)


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
