"""Run the cells that a script of scripts/paper lists, call the evaluators installed, make tables and figures."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.make_tables import make_tables
from scripts.paper_tables.cell import Cell, read_cells
from scripts.paper_tables.collect import collect_scores
from scripts.paper_tables.commands import TINY, Setting
from scripts.paper_tables.estimate import print_plan
from scripts.paper_tables.evaluate import evaluate
from scripts.paper_tables.jobs import FAILED, Outcome, check_cells, jobs_of_cells, run_jobs
from scripts.paper_tables.machine import find_machine, job_slots
from scripts.paper_tables.slurm import write_job_array
from scripts.plot_figures import plot_figures
from utils.command_line import OneLineParser
from utils.errors import UserError, run_command_line
from utils.run_log import logged_run

log = logging.getLogger(__name__)

BACKENDS = ("auto", "vllm", "transformers")


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="bash scripts/paper/TABLE.sh", description=__doc__, allow_abbrev=False)
    parser.add_argument("--cells", type=Path, required=True, help=argparse.SUPPRESS)  # the shell script's
    parser.add_argument("--job", type=int, help=argparse.SUPPRESS)  # a job array's
    parser.add_argument(
        "--models",
        metavar="tiny|DIR",
        help="the tiny models of this project, fewer examples; or the folder where models lie under the paper's names "
        "(default: the working folder, else the hub)",
    )
    parser.add_argument("--results_dir", type=Path, help="where all of it goes (default: paper_results[_tiny])")
    parser.add_argument("--data_dir", type=Path, help="folder looked in for the sets' files before `datasets`")
    parser.add_argument("--backend", choices=BACKENDS, help="what completes the prompts (default: auto)")
    parser.add_argument("--tensor_parallel_size", type=int, help="vLLM: GPUs per layer; GPUs left over run more jobs")
    parser.add_argument("--delete_merged_models", action="store_true", help="keep a merge's record, not its weights")
    parser.add_argument(
        "--allow_code_execution",
        action="store_true",
        help="let evaluators run generated programs, with limits on time, memory and network",
    )
    parser.add_argument("--dry_run", action="store_true", help="print commands and what they would take; run nothing")
    parser.add_argument("--slurm", action="store_true", help="write the cells as a job array for sbatch; run nothing")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = build_parser().parse_args(words)
    with logged_run():
        run(options)


def run(options: argparse.Namespace) -> None:
    setting = setting_of_options(options)
    cells = read_cells(options.cells)
    check_cells(cells, setting)
    jobs = jobs_of_cells(cells, setting)
    machine = find_machine(setting.results_dir)
    slots = job_slots(machine, options.tensor_parallel_size, setting.is_tiny)
    if options.dry_run:
        print_plan(jobs, setting, machine, len(slots), options.delete_merged_models)
        return
    if options.slurm:
        script = write_job_array(options, setting, len(jobs))
        log.info("sbatch %s", script)
        log.info("When its jobs have ended, type this command again without --slurm: evaluators, tables, figures.")
        return
    if options.job is not None:
        jobs = [jobs[options.job]]
        slots = slots[:1]
    outcomes = run_jobs(jobs, setting, slots, options.delete_merged_models)
    if options.job is None:
        evaluate(setting, options.allow_code_execution)
        scores = collect_scores(setting.results_dir)
        make_tables(setting.results_dir, scores)
        plot_figures(setting.results_dir, scores)
    report(cells, outcomes)
    if any(outcome.status == FAILED for outcome in outcomes):
        raise UserError(f"some cells failed; their logs are in {setting.results_dir / 'paper_cells'}")


def setting_of_options(options: argparse.Namespace) -> Setting:
    models = options.models
    if models is not None and models != TINY and not Path(models).is_dir():
        raise UserError(f"--models {models}: neither `{TINY}` nor a folder")
    name = "paper_results_tiny" if models == TINY else "paper_results"
    backend = options.backend or ("transformers" if models == TINY else "auto")
    results_dir = options.results_dir or Path(name)
    return Setting(results_dir, models, options.data_dir, backend, options.tensor_parallel_size)


def report(cells: Sequence[Cell], outcomes: Sequence[Outcome]) -> None:
    log.info("%d cells: %d run now, the others done before", len(cells), len(outcomes))
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
