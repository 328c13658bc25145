"""Run the cells that a script of scripts/paper lists, call the evaluators installed, make tables and figures."""

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

from scripts.make_tables import make_tables
from scripts.paper_tables.cell import read_cells
from scripts.paper_tables.collect import collect_scores
from scripts.paper_tables.commands import ROOT, TINY, Setting
from scripts.paper_tables.estimate import print_plan
from scripts.paper_tables.evaluate import evaluate
from scripts.paper_tables.jobs import DONE, FAILED, Outcome, check_cells, jobs_of_cells, run_jobs
from scripts.paper_tables.machine import GPUS_OF_A_MODEL, find_machine, job_slots, tensor_parallel_size
from scripts.paper_tables.slurm import write_job_array
from scripts.plot_figures import plot_figures
from utils.command_line import OneLineParser, positive_number, whole_number
from utils.errors import UserError, run_command_line
from utils.run_log import logged_run
from utils.whole_files import locked

log = logging.getLogger(__name__)

BACKENDS = ("auto", "vllm", "transformers")


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="bash scripts/paper/TABLE.sh", description=__doc__, allow_abbrev=False)
    parser.add_argument("--cells", type=Path, required=True, help=argparse.SUPPRESS)  # the shell script's
    parser.add_argument("--typed_in", type=Path, default=ROOT, help=argparse.SUPPRESS)  # what paths count from
    parser.add_argument("--job", type=whole_number, help=argparse.SUPPRESS)  # a job array's
    parser.add_argument(
        "--models",
        metavar="tiny|DIR",
        help="the tiny models of this project, fewer examples; or the folder where models lie under the paper's names "
        "(default: the working folder, else the hub)",
    )
    parser.add_argument("--results_dir", type=Path, help="where all of it goes (default: paper_results[_tiny])")
    parser.add_argument("--data_dir", type=Path, help="folder looked in for the sets' files before `datasets`")
    parser.add_argument("--backend", choices=BACKENDS, help="what completes the prompts (default: auto)")
    parser.add_argument(
        "--tensor_parallel_size",
        type=positive_number,
        help=f"vLLM: GPUs per layer; GPUs left over run more jobs (default: {GPUS_OF_A_MODEL}, or all if fewer)",
    )
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
    writes_array = options.slurm and not options.dry_run
    # The machines of an array are others than the one that it is written on.
    gpus = GPUS_OF_A_MODEL if writes_array else len(machine.gpus)
    size = tensor_parallel_size(setting.tensor_parallel_size, setting.backend, gpus)
    setting = replace(setting, tensor_parallel_size=size)
    if writes_array:
        script = write_job_array(options.cells, jobs, setting, options.delete_merged_models)
        log.info("sbatch %s", script)
        log.info("When its jobs have ended, type this command again without --slurm: evaluators, tables, figures.")
        return
    slots = job_slots(machine, size, setting.is_tiny)
    if options.dry_run:
        print_plan(jobs, setting, machine, len(slots), options.delete_merged_models)
        return
    if options.job is not None:
        if options.job >= len(jobs):
            raise UserError(f"--job {options.job}: {options.cells} holds {len(jobs)} merges, numbered from 0")
        jobs = [jobs[options.job]]
        slots = slots[:1]
    outcomes = run_jobs(jobs, setting, slots, options.delete_merged_models)
    if options.job is None:
        with locked(setting.results_dir / "tables", waits=True):
            evaluate(setting, options.allow_code_execution)
            scores = collect_scores(setting.results_dir)
            plot_figures(setting.results_dir, scores)
            make_tables(setting.results_dir, scores)
    report(sum(map(len, jobs)), outcomes)
    if any(outcome.status == FAILED for outcome in outcomes):
        raise UserError(f"some cells failed; their logs are in {setting.results_dir / 'paper_cells'}")


def setting_of_options(options: argparse.Namespace) -> Setting:
    models, data_dir = options.models, options.data_dir
    if models is not None and models != TINY:
        models = str(from_root(Path(models), options.typed_in))
        if not Path(models).is_dir():
            raise UserError(f"--models {options.models}: neither `{TINY}` nor a folder")
    if options.results_dir is None:
        results_dir = Path("paper_results_tiny" if models == TINY else "paper_results")
    else:
        results_dir = from_root(options.results_dir, options.typed_in)
    if data_dir is not None:
        data_dir = from_root(data_dir, options.typed_in)
    backend = options.backend or ("transformers" if models == TINY else "auto")
    return Setting(results_dir, models, data_dir, backend, options.tensor_parallel_size)


def from_root(path: Path, typed_in: Path) -> Path:
    """A path that was typed in a folder as it is typed at the project's root, where commands run."""
    place = Path(os.path.normpath(typed_in / path))
    return place.relative_to(ROOT) if place.is_relative_to(ROOT) else place


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
