"""Run the cells of the paper's tables, score their answers, and make the tables and figures. Rerun the same command to
resume."""

if __name__ in ("__main__", "__mp_main__"):  # before the imports, which take a while
    from utils.interrupts import prepare_process

    prepare_process(__name__)

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

from inference_llms.command_line import add_judge_options, check_chat_template, judge_of_options
from inference_llms.prompt_format import CHAT, add_prompt_options, prompt_format
from scripts.make_tables import make_tables
from scripts.paper_tables import cells
from scripts.paper_tables.cell_runs import ROOT, TINY, Setting
from scripts.paper_tables.cells import DONE, FAILED, Cell
from scripts.paper_tables.collect import collect_scores
from scripts.paper_tables.evaluate import evaluate
from scripts.paper_tables.runner import (
    GPUS_OF_A_MODEL,
    Job,
    Outcome,
    job_slots,
    jobs_of_cells,
    run_jobs,
    tensor_parallel_size,
    visible_gpus,
    write_job_array,
)
from scripts.plot_figures import plot_figures
from utils.command_line import OneLineParser, positive_number, whole_number
from utils.errors import UserError, run_command_line
from utils.interrupts import report_when_terminated
from utils.run_log import logged_run
from utils.whole_files import locked

log = logging.getLogger(__name__)

BACKENDS = ("auto", "vllm", "transformers")
EXAMPLES = """examples:
  bash scripts/paper/all.sh --models tiny --allow_code_execution   all tables on the tiny models, on a laptop
  bash scripts/paper/performance.sh --models DIR --dry_run         the commands of one table; runs nothing

environment variables: SEEDS="0 1 2" (the default), the draws of M3 and DARE; PYTHON, the interpreter"""


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="bash scripts/paper/TABLE.sh",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("tables", nargs="*", help=argparse.SUPPRESS)  # from the shell script
    parser.add_argument("--cells", type=Path, help=argparse.SUPPRESS)  # from a job array
    parser.add_argument("--job", type=whole_number, help=argparse.SUPPRESS)
    parser.add_argument("--working_folder", type=Path, default=ROOT, help=argparse.SUPPRESS)  # of relative paths
    files = parser.add_argument_group("models, sets and results")
    files.add_argument(
        "--models",
        metavar="tiny|DIR",
        help="the tiny models of this project, with fewer examples; or the folder that holds the models under the "
        "paper's names (default: the working folder, else the hub)",
    )
    files.add_argument("--results_dir", type=Path, help="folder of all results (default: paper_results[_tiny])")
    files.add_argument("--data_dir", type=Path, help="folder with the sets' files (default: download the sets)")
    files.add_argument("--delete_merged_models", action="store_true", help="keep a merge's record, delete its weights")
    running = parser.add_argument_group("running")
    add_running_options(running, f"{GPUS_OF_A_MODEL}, or all if fewer; other GPUs run further merges")
    add_prompt_options(running)
    add_judge_options(running)
    running.add_argument("--dry_run", action="store_true", help="print the commands and a time estimate; run nothing")
    running.add_argument("--slurm", action="store_true", help="write the cells as a job array for sbatch; run nothing")
    return parser


def add_running_options(parser: argparse._ActionsContainer, gpus: str) -> None:
    """Add the options of engines and of programs that models write; `gpus` says the default number of GPUs."""
    text = "engine (default: transformers with the tiny models, else auto)"
    parser.add_argument("--backend", choices=BACKENDS, help=text)
    text = f"vLLM: GPUs per model (default: {gpus})"
    parser.add_argument("--tensor_parallel_size", type=positive_number, help=text)
    text = "let evaluators run generated programs, with limits on time, memory and network"
    parser.add_argument("--allow_code_execution", action="store_true", help=text)


def main(arguments: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    with logged_run():
        run(options)


def run(options: argparse.Namespace) -> None:
    setting = setting_of_options(options)
    listed = cells.read_cells(options.cells) if options.cells else cells.cells_of_tables(options.tables, seeds())
    writes_array = options.slurm and not options.dry_run
    gpus = visible_gpus()
    # An array runs on other machines than this one.
    number = GPUS_OF_A_MODEL if writes_array else len(gpus)
    size = tensor_parallel_size(setting.tensor_parallel_size, setting.backend, number)
    setting = replace(setting, tensor_parallel_size=size)
    jobs = jobs_of_cells(listed, setting)
    if writes_array:
        log.info("sbatch %s", write_job_array(listed, len(jobs), setting, options.delete_merged_models))
        log.info("When its jobs have ended, rerun this command without --slurm: evaluators, tables, figures.")
        return
    slots = job_slots(gpus, size, setting.is_tiny)
    if options.dry_run:
        print_plan(jobs, setting.results_dir, len(slots))
        return
    if options.job is not None:
        if options.job >= len(jobs):
            raise UserError(f"--job {options.job}: there are {len(jobs)} models, numbered from 0")
        jobs, slots = [jobs[options.job]], slots[:1]
    if setting.prompt_format.name == CHAT:
        for folder in sorted({folder for job in jobs for run in job for folder in run.tokenizer_folders()}):
            check_chat_template(folder, setting.prompt_format)
    report_when_terminated(lambda: [hours_line(jobs, setting, len(slots))])
    try:
        outcomes = run_jobs(jobs, slots, options.delete_merged_models)
    finally:  # after a stop too
        log.info(hours_line(jobs, setting, len(slots)))
    if options.job is None:
        with locked(setting.results_dir / "tables", blocking=True):
            evaluate(setting)
            scores = collect_scores(setting.results_dir)
            plot_figures(setting.results_dir, scores)
            make_tables(setting.results_dir, scores)
    report(sum(map(len, jobs)), outcomes)
    if any(outcome.status == FAILED for outcome in outcomes):
        raise UserError(f"some cells failed; their logs are in {setting.results_dir / cells.STATES}")


def seeds() -> list[int]:
    text = os.environ.get("SEEDS") or "0 1 2"
    try:
        return [whole_number(seed) for seed in text.split()]
    except argparse.ArgumentTypeError as error:
        raise UserError(f"SEEDS={text}: {error}") from None


def setting_of_options(options: argparse.Namespace) -> Setting:
    models, data_dir, results_dir = options.models, options.data_dir, options.results_dir
    if models is not None and models != TINY:
        models = str(from_root(Path(models), options.working_folder))
        if not Path(models).is_dir():
            raise UserError(f"--models {options.models}: neither `{TINY}` nor a folder")
    if results_dir is None:
        results_dir = Path("paper_results_tiny" if models == TINY else "paper_results")
    else:
        results_dir = from_root(results_dir, options.working_folder)
    if data_dir is not None:
        data_dir = from_root(data_dir, options.working_folder)
    backend = options.backend or ("transformers" if models == TINY else "auto")
    size, allowed = options.tensor_parallel_size, options.allow_code_execution
    judge = judge_of_options(options)
    if judge is not None:
        if models == TINY:
            raise UserError("the tiny models' answers to alpaca_eval have no judge; remove the options that choose one")
        judge.check_server()
    return Setting(results_dir, models, data_dir, backend, size, allowed, prompt_format(options), judge)


def from_root(path: Path, working_folder: Path) -> Path:
    """A path that was given in a working folder, for commands that run in the project's root."""
    place = Path(os.path.normpath(working_folder / path))
    return place.relative_to(ROOT) if place.is_relative_to(ROOT) else place


def print_plan(jobs: Sequence[Job], results_dir: Path, jobs_at_once: int) -> None:
    """Print every command that would run, their number, and a time estimate from cells that ran before."""
    measured = measured_seconds(results_dir)
    estimates, models = [], 0
    for job in jobs:
        shown: set[str] = set()  # a command that several cells of a job need runs once
        for run in job:
            if run.is_done():
                print(f"# done: {run.cell.name}")
                continue
            estimates.append(measured.get(_kind(run.cell)))
            print(f"# {', '.join(run.cell.tables)}{f': about {duration(estimates[-1])}' if estimates[-1] else ''}")
            commands = [command.text for command in run.commands]
            print("\n".join(command for command in commands if command not in shown) or "# shares its command")
            shown |= {*commands}
        models += bool(shown)
    print(f"\n{len(estimates)} cells of {models} models to run, {jobs_at_once} at a time")
    known = [seconds for seconds in estimates if seconds is not None]
    if known:
        print(f"about {duration(sum(known) / jobs_at_once)} for {len(known)} of them, from cells that ran before")
    if len(known) < len(estimates):
        print(f"no time estimate for {len(estimates) - len(known)} of them: no such cell ran in this results folder")


def hours_line(jobs: Sequence[Job], setting: Setting, jobs_at_once: int) -> str:
    """The time that the finished cells took and the estimate for the others, in GPU hours where there are GPUs."""
    measured, used, estimates = measured_seconds(setting.results_dir), 0.0, []
    for run in (run for job in jobs for run in job):
        state = run.state
        if run.is_done():
            used += (state and state.seconds) or 0.0
        else:
            estimates.append(measured.get(_kind(run.cell)))
    gpus = setting.tensor_parallel_size if visible_gpus() else None
    hours = f"{(gpus or 1) * used / 3600:.2g} {'GPU hours' if gpus else 'hours of one job'}"
    known = [seconds for seconds in estimates if seconds is not None]
    left = f"; left: {len(estimates)} cells" if estimates else ""
    if known:
        left += f", about {duration(sum(known) / jobs_at_once)}"
        left += f" for {len(known)} of them" if len(known) < len(estimates) else ""
    return f"used: {hours}{left}"


def measured_seconds(results_dir: Path) -> dict[tuple, float]:
    """The mean seconds of cells that are done, by kind."""
    measured: dict[tuple, list[float]] = {}
    for path in (results_dir / cells.STATES).glob("*.json"):
        try:
            state = cells.read_state(path)
        except UserError:  # reported when scores are collected
            continue
        if state.status == DONE and state.seconds is not None:
            measured.setdefault(_kind(state.cell), []).append(state.seconds)
    return {kind: mean(seconds) for kind, seconds in measured.items()}


def _kind(cell: Cell) -> tuple:
    """The key of cells that take about the same time."""
    models = sorted(name for name in cell.merge if name.startswith("merge_")) if cell.script == cells.MAIN_JOB else []
    return cell.script, *cell.tasks, *cell.attacks, *models


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"


def report(number_of_cells: int, outcomes: Sequence[Outcome]) -> None:
    done = sum(outcome.status == DONE for outcome in outcomes)
    before = number_of_cells - len(outcomes)
    log.info("%d cells: %d done now, %d before, %d failed", number_of_cells, done, before, len(outcomes) - done)
    reasons: dict[str, list[str]] = {}
    for outcome in outcomes:
        if outcome.status == FAILED:
            reasons.setdefault(outcome.reason or "", []).append(outcome.cell.name)
    for reason, names in reasons.items():
        log.info("%s, %d cells: %s", FAILED, len(names), reason)
        for name in names:
            log.info("    %s", name)


if __name__ == "__main__":
    sys.exit(run_command_line(main))
