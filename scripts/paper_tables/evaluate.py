"""Run the installed evaluators on the files of runs, and print the commands of the others."""

import logging
from collections.abc import Iterator
from pathlib import Path

from inference_llms.task import AnswerFiles
from inference_llms.tasks import TASKS
from scripts.paper_tables.cell_runs import Setting
from scripts.paper_tables.results import NOTES, note_key, task_records
from utils.errors import UserError
from utils.whole_files import write_json

log = logging.getLogger(__name__)

NEEDS_PERMISSION = "needs --allow_code_execution: it runs generated programs"


def evaluate(setting: Setting) -> None:
    """Score all files that have no result yet. Failures and missing evaluators are printed and recorded; no failure
    stops another evaluator."""
    unscored = [
        files for files in files_to_evaluate(setting.results_dir) if not files.task.evaluator.has_scored(files.files)
    ]
    notes: dict[Path, str] = {}
    for files in unscored:
        evaluator = files.task.evaluator
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


def files_to_evaluate(results_dir: Path) -> Iterator[AnswerFiles]:
    """All files below `results_dir` whose task has an evaluator. Unusable records are skipped here; they are reported
    where scores are collected."""
    for record in task_records(results_dir):
        if record.fault or record.task not in TASKS or TASKS[record.task].evaluator is None:
            continue
        command = record.relocated(record.content.get("evaluator_command") or "")
        if record.files and command:
            data_dir = record.content.get("data_dir")
            release = record.options().get("livebench_release")
            files, folder = tuple(record.files), None if data_dir is None else Path(data_dir)
            yield AnswerFiles(TASKS[record.task], files, command, folder, release)
