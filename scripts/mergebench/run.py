"""Run MergeBench: the tasks of its models, its merges and their tasks, the tables. Rerun the same command to resume."""

if __name__ in ("__main__", "__mp_main__"):  # before the imports, which take a while
    from utils.interrupts import prepare_process

    prepare_process(__name__)

import argparse
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from inference_llms.lm_eval_tasks import check_installed
from scripts.mergebench.plan import MERGE, TASKS, BenchSetting, BenchStep, merged_model, steps_of_base
from scripts.mergebench.scores import evalplus_commands
from scripts.mergebench.suite import FULL, SAFETY, TINY, Suite
from scripts.mergebench.table import write_tables
from scripts.paper_tables import cell_runs
from scripts.paper_tables.cell_runs import ROOT
from scripts.paper_tables.evaluate import evaluate
from scripts.paper_tables.run_cells import add_running_options, duration, from_root
from scripts.paper_tables.runner import why_it_ended
from utils.child_processes import child_process, interrupt_children
from utils.command_line import OneLineParser
from utils.errors import UserError, run_command_line
from utils.interrupts import report_when_terminated
from utils.json_files import read_json_object
from utils.run_log import logged_run
from utils.whole_files import locked, remove_folder, write_json

log = logging.getLogger(__name__)

STEPS = "steps"  # below the results folder: the record and the log of every step
SAFETY_EVAL_DIR = "SAFETY_EVAL_DIR"
FOLDERS = ("data_dir", "lm_eval_include_path")  # options of inference_llms that name folders with files of tasks
EXAMPLES = f"""examples:
  bash scripts/paper/mergebench.sh --models tiny --allow_code_execution   its shape on the tiny models, on a laptop
  bash scripts/paper/mergebench.sh --dry_run                              commands, disk and hours; writes nothing
  bash scripts/paper/mergebench.sh --bases Llama-3.2-3B --methods ties dare --allow_code_execution

environment variables: PYTHON, the interpreter; {SAFETY_EVAL_DIR}, the folder of nouhadziri/safety-eval-fork, whose
interpreter is .venv/bin/python there if it exists. Without it the safety sets are left out."""


def build_parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(
        prog="bash scripts/paper/mergebench.sh",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=layout,
        allow_abbrev=False,
    )
    parser.add_argument("--working_folder", type=Path, default=ROOT, help=argparse.SUPPRESS)  # of relative paths
    parser.add_argument("--models", choices=("tiny",), help="the tiny models instead of MergeBench's")
    parser.add_argument("--bases", nargs="+", metavar="BASE", help=f"of {', '.join(_names(FULL))} (default: all)")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help=f"of {', '.join(FULL.methods)} (default: all)")
    parser.add_argument("--results_dir", type=Path, help="folder of all results (default: mergebench_results[_tiny])")
    parser.add_argument(
        "--data_dir", type=Path, help="folder with the sets' files of HumanEval and MBPP (default: download)"
    )
    parser.add_argument("--delete_merged_models", action="store_true", help="delete a merge after its tasks")
    add_running_options(parser, "all")
    parser.add_argument("--dry_run", action="store_true", help="print commands, disk and hours; run and write nothing")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)
    with logged_run():
        run(options)


def run(options: argparse.Namespace) -> None:
    setting = setting_of_options(options)
    if not options.dry_run:
        check_installed()
    if setting.safety_eval is None and setting.suite.sets_of(SAFETY):
        log.info("no safety sets: set %s to the folder of nouhadziri/safety-eval-fork", SAFETY_EVAL_DIR)
    steps = [step for base in setting.suite.bases for step in steps_of_base(base, setting)]
    if options.dry_run:
        print("\n".join(plan_lines(steps, setting)))
        return
    with locked(setting.results_dir / STEPS):
        report_when_terminated(lambda: [hours_line(steps, setting)])
        try:
            failed = run_steps(steps, setting, options.delete_merged_models)
        finally:  # after a stop too
            log.info(hours_line(steps, setting))
        data_dir = setting.suite.task_options.get("data_dir")
        evaluate(
            cell_runs.Setting(
                setting.results_dir,
                options.models,
                None if data_dir is None else Path(data_dir),
                setting.backend,
                setting.tensor_parallel_size,
                setting.allow_code_execution,
            )
        )
        costs = {step.name: step_record(step, setting) for step in steps if step.kind == MERGE}
        write_tables(setting, costs)
        if commands := evalplus_commands(setting.results_dir):
            log.info(
                "not judged by EvalPlus yet; run these, and then this command again:\n    %s", "\n    ".join(commands)
            )
    if failed:
        raise UserError(f"{len(failed)} steps failed; their logs are in {setting.results_dir / STEPS}")


def setting_of_options(options: argparse.Namespace) -> BenchSetting:
    is_tiny = options.models is not None
    suite = TINY if is_tiny else FULL
    bases = _chosen("--bases", options.bases, {base.name: base for base in suite.bases})
    methods = _chosen("--methods", options.methods, suite.methods)
    task_options = dict(suite.task_options)
    if options.data_dir is not None:
        task_options["data_dir"] = str(from_root(options.data_dir, options.working_folder))
        if not (ROOT / task_options["data_dir"]).is_dir():
            raise UserError(f"--data_dir {options.data_dir}: no such folder")
    suite = replace(suite, bases=tuple(bases.values()), methods=methods, task_options=task_options)
    default = Path("mergebench_results_tiny" if is_tiny else "mergebench_results")
    given = options.results_dir
    results_dir = default if given is None else from_root(given, options.working_folder)
    safety_eval = os.environ.get(SAFETY_EVAL_DIR)
    if safety_eval and not Path(safety_eval).is_dir():
        raise UserError(f"{SAFETY_EVAL_DIR}={safety_eval}: no such folder")
    return BenchSetting(
        suite=suite,
        is_tiny=is_tiny,
        results_dir=results_dir,
        backend=options.backend or ("transformers" if is_tiny else "auto"),
        tensor_parallel_size=options.tensor_parallel_size,
        allow_code_execution=options.allow_code_execution,
        safety_eval=None if not safety_eval else Path(safety_eval),
        inputs=local_files(task_options),
    )


def _names(suite: Suite) -> list[str]:
    return [base.name for base in suite.bases]


def _chosen(option: str, names: Sequence[str] | None, known: Mapping) -> dict:
    """The named entries in the order of `known`; all without names."""
    if unknown := [name for name in names or () if name not in known]:
        raise UserError(f"{option} {unknown[0]}: choose from {', '.join(known)}")
    return {name: value for name, value in known.items() if names is None or name in names}


def record_path(step: BenchStep, setting: BenchSetting) -> Path:
    return setting.results_dir / STEPS / f"{step.name.replace('/', '_')}.json"


def step_record(step: BenchStep, setting: BenchSetting) -> dict | None:
    """The record of a finished step: `command`, `inputs`, `seconds`, `peak_bytes`. None if it has not finished, or with
    another command or other files, or if its scores are gone."""
    path = record_path(step, setting)
    if not path.is_file():
        return None
    record = read_json_object(path, "remove it and rerun the command")
    is_same = record.get("command") == step.text and record.get("inputs", {}) == _inputs(step, setting)
    has_scores = step.kind != TASKS or any(setting.folder(step.base, step.subject).glob("save_scores/**/*.json"))
    return record if is_same and has_scores else None


def _inputs(step: BenchStep, setting: BenchSetting) -> Mapping[str, Sequence[int]]:
    return setting.inputs if step.kind == TASKS else {}


def local_files(task_options: Mapping[str, str]) -> dict[str, list[int]]:
    """Size and time of every file in the folders that options of inference_llms name."""
    folders = [Path(ROOT, task_options[name]) for name in FOLDERS if name in task_options]
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    return {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}


def run_steps(steps: Sequence[BenchStep], setting: BenchSetting, delete_merged_models: bool) -> list[BenchStep]:
    """Run the steps that have not finished, in order; returns those that failed. After a failed merge its tasks do not
    run; nothing else stops."""
    failed: list[BenchStep] = []
    for number, step in enumerate(steps):
        of_subject = [one for one in steps if (one.base, one.subject) == (step.base, step.subject)]
        if _is_needed(step, of_subject, setting):
            without_merge = of_subject[0] in failed and of_subject[0].kind == MERGE
            reason = "its merge failed" if without_merge else run_step(step, setting)
            log.info("%d of %d, %s: %s", number + 1, len(steps), step.name, reason or "done")
            if reason is not None:
                failed.append(step)
        if delete_merged_models and step is of_subject[-1] and _has_finished(of_subject, setting):
            remove_folder(setting.folder(step.base, step.subject) / "save_merge_models")
    return failed


def _is_needed(step: BenchStep, of_subject: Sequence[BenchStep], setting: BenchSetting) -> bool:
    """Whether the step must run. A merge whose weights were deleted is made again only for tasks that are not done."""
    if step_record(step, setting) is None:
        return True
    is_unused = all(step_record(one, setting) for one in of_subject if one is not step)
    return step.kind == MERGE and not is_unused and not merged_model(step.base, step.subject, setting).is_dir()


def _has_finished(of_subject: Sequence[BenchStep], setting: BenchSetting) -> bool:
    """Whether a merge and all its tasks are done."""
    return of_subject[0].kind == MERGE and all(step_record(one, setting) for one in of_subject)


def run_step(step: BenchStep, setting: BenchSetting) -> str | None:
    """Run a step, with its output in a log beside its record; returns the reason if it failed.

    The recorded peak memory is the process's resident memory, with the parts of input files that it maps."""
    path = record_path(step, setting)
    path.parent.mkdir(parents=True, exist_ok=True)
    setting.folder(step.base, step.subject).mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if setting.is_tiny:
        environment["HF_HUB_OFFLINE"] = "1"
    started = time.monotonic()
    with open(path.with_suffix(".log"), "wb") as output:
        output.write(f"$ {step.text}\n".encode())
        output.flush()
        start = output.tell()
        words, cwd = [_interpreter(step), *step.words], step.cwd or ROOT
        try:
            with child_process(words, environment, cwd=cwd, stdout=output, stderr=subprocess.STDOUT) as process:
                try:
                    _, status, usage = os.wait4(process.pid, 0)
                except BaseException:  # Ctrl-C, as `Interrupted`
                    interrupt_children()
                    raise
                process.returncode = os.waitstatus_to_exitcode(status)
        except OSError as error:
            return str(error)
    if process.returncode != 0:
        return why_it_ended(process.returncode, path.with_suffix(".log"), start)
    seconds = round(time.monotonic() - started, 1)
    peak = 1024 * usage.ru_maxrss
    write_json(path, {"command": step.text, "inputs": _inputs(step, setting), "seconds": seconds, "peak_bytes": peak})
    return None


def _interpreter(step: BenchStep) -> str:
    """This interpreter, or that of safety-eval."""
    if step.cwd is None:
        return sys.executable
    own = step.cwd / ".venv/bin/python"
    return str(own.absolute()) if own.is_file() else "python"


def plan_lines(steps: Sequence[BenchStep], setting: BenchSetting) -> list[str]:
    """Every command with its disk and time, and the sums by base. The time of a step is that of a finished one with
    the same work, or else the estimate."""
    left, lines = _steps_left(steps, setting), []
    for base in setting.suite.bases:
        lines.append(f"# {base.name}: {base.hub_id}, {base.parameters / 1e9:.1f} billion parameters")
        of_base = [step for step in left if step.base is base]
        for step in of_base:
            lines += [f"# {step.name}: {_needs([step])}", step.text]
        lines += [f"# {base.name}: {_needs(of_base)}", ""] if of_base else ["# done", ""]
    lines.append(f"{len(left)} of {len(steps)} steps to run: {_needs(left)}" if left else "all steps are done")
    if setting.suite.bases and not setting.is_tiny:
        largest = max(base.bytes for base in setting.suite.bases)
        lines.append(f"With --delete_merged_models, merges need {_gigabytes(largest)} at a time.")
        lines.append(
            "Time: that of finished steps with the same work; else of tasks on one NVIDIA A40, from the two runs on "
            "it in MergeBench's repository (3% and 31% more than they took), and of merges from a disk of 1 GB/s."
        )
    return lines


def hours_line(steps: Sequence[BenchStep], setting: BenchSetting) -> str:
    """The time that the finished steps took, and what the others need."""
    seconds = sum(record["seconds"] for step in steps if (record := step_record(step, setting)))
    left = _steps_left(steps, setting)
    return f"used: {_time(seconds)}" + (f"; left: {len(left)} steps, {_needs(left)}" if left else "")


def _steps_left(steps: Sequence[BenchStep], setting: BenchSetting) -> list[BenchStep]:
    """The steps that have not finished. Their times are those of finished steps with the same work if there are any."""
    records = [(step, step_record(step, setting)) for step in steps]
    measured = {(step.base.name, *step.work): record["seconds"] for step, record in records if record}
    return [
        replace(step, seconds=measured.get((step.base.name, *step.work), step.seconds))
        for step, record in records
        if record is None
    ]


def _needs(steps: Sequence[BenchStep]) -> str:
    """What steps need, in words."""
    downloaded, written = (sum(getattr(step, part) for step in steps) for part in ("downloaded", "written"))
    words = [f"download {_gigabytes(downloaded)}"] if downloaded else []
    words += [f"write {_gigabytes(written)}"] if written else []
    for kind, of_kind in (
        ("of tasks", [step for step in steps if step.kind != MERGE]),
        ("of merging", [step for step in steps if step.kind == MERGE]),
    ):
        known = [step.seconds for step in of_kind if step.seconds is not None]
        if known:
            words.append(f"about {_time(sum(known))} {kind}")
        if unknown := len(of_kind) - len(known):
            words.append(f"no time estimate for {unknown} step{'s' if unknown > 1 else ''} {kind}")
    return ", ".join(words)


def _time(seconds: float) -> str:
    return duration(seconds) if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e8 else f"{number / 1e6:,.1f} MB"


if __name__ == "__main__":
    sys.exit(run_command_line(main))
