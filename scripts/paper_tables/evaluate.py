"""Run the installed evaluators on the files of runs, and print the commands of the others."""

import logging
from collections.abc import Iterator
from pathlib import Path

from inference_llms.evaluators import alpaca_eval
from inference_llms.evaluators.alpaca_eval import Judge
from inference_llms.evaluators.results import read_command
from inference_llms.task import AnswerFiles
from inference_llms.tasks import TASKS
from scripts.paper_tables.cell_runs import Setting
from scripts.paper_tables.results import NOTES, note_key, task_records
from utils.errors import UserError
from utils.whole_files import write_json

log = logging.getLogger(__name__)

ALPACA_EVAL = "alpaca_eval"
NEEDS_PERMISSION = "needs --allow_code_execution: it runs generated programs"


def evaluate(setting: Setting) -> None:
    """Score all files that have no result yet, or one of another judge than the chosen one. Failures and missing
    evaluators are printed and recorded; no failure stops another evaluator."""
    judge = setting.judge
    unscored = [files for files in files_to_evaluate(setting.results_dir, judge) if not is_scored(files, judge)]
    notes: dict[Path, str] = {}
    for files in unscored:
        evaluator = files.task.evaluator
        if judge is not None and judge.is_own and files.task.name == ALPACA_EVAL:
            alpaca_eval.write_judge(files.files[0], judge)
        if evaluator.runs_programs and not setting.allow_code_execution:
            notes[files.files[0]] = NEEDS_PERMISSION
            continue
        try:
            evaluator.run(files, without_model=setting.is_tiny)
        except UserError as error:
            notes[files.files[0]] = str(error)
    by_key = {note_key(setting.results_dir, file): reason for file, reason in notes.items()}
    write_json(setting.results_dir / NOTES, by_key)
    for reason in dict.fromkeys(notes.values()):
        concerned = [files for files in unscored if notes.get(files.files[0]) == reason]
        log.info("not judged, %d files: %s", len(concerned), reason)
        commands = [files.task.evaluator.full_command(files.files, files.command) for files in concerned]
        for command in dict.fromkeys(commands):
            log.info("    %s", command)


def is_scored(files: AnswerFiles, judge: Judge | None) -> bool:
    """Whether there is a result for the current files: by the chosen judge, if it depends on one and one is chosen."""
    evaluator = files.task.evaluator
    if not evaluator.has_scored(files.files):
        return False
    if judge is None or files.task.name != ALPACA_EVAL:
        return True
    return read_command(evaluator.result(files.files)) == evaluator.full_command(files.files, files.command)


def files_to_evaluate(results_dir: Path, judge: Judge | None = None) -> Iterator[AnswerFiles]:
    """All files below `results_dir` whose task has an evaluator, with the chosen judge's command, if one is chosen.
    Unusable records are skipped here; they are reported where scores are collected."""
    for record in task_records(results_dir):
        if record.fault or record.task not in TASKS or TASKS[record.task].evaluator is None:
            continue
        command = record.relocated(record.content.get("evaluator_command") or "")
        if record.files and command:
            data_dir = record.content.get("data_dir")
            release = record.options().get("livebench_release")
            files, folder = tuple(record.files), None if data_dir is None else Path(data_dir)
            if judge is not None and record.task == ALPACA_EVAL:
                command = alpaca_eval.command_for(files, record.content["examples"], record.places, judge)
            yield AnswerFiles(TASKS[record.task], files, command, folder, release)
