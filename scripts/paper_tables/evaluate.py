"""Run the evaluators that are installed on the files that runs wrote; print the commands that remain for the others."""

import logging
from collections.abc import Iterator
from pathlib import Path

from inference_llms.task import AnswerFiles
from inference_llms.tasks import TASKS
from scripts.paper_tables.cell_runs import Setting
from scripts.paper_tables.results import (
    NOTES,
    check_record,
    note_key,
    options_of_record,
    own_evaluator_command,
    own_files,
    read_task_records,
    scores_files,
)
from utils.errors import UserError
from utils.whole_files import write_json

log = logging.getLogger(__name__)

NEEDS_PERMISSION = "needs --allow_code_execution: it runs generated programs"


def evaluate(setting: Setting, allow_code_execution: bool) -> None:
    """Score all files that have no result yet. Failures and missing evaluators are printed and recorded; no failure
    stops another evaluator."""
    found = files_to_evaluate(setting.results_dir)
    waiting = [files for files in found if not files.task.evaluator.has_scored(files.files)]
    notes: dict[Path, str] = {}
    for files in waiting:
        evaluator = files.task.evaluator
        if evaluator.runs_programs and not allow_code_execution:
            notes[files.files[0]] = NEEDS_PERMISSION
            continue
        try:
            evaluator.run(files, without_model=setting.is_tiny)
        except UserError as error:
            notes[files.files[0]] = str(error)
    by_key = {note_key(setting.results_dir, file): reason for file, reason in notes.items()}
    write_json(setting.results_dir / NOTES, by_key)
    for reason in dict.fromkeys(notes.values()):
        concerned = [files for files in waiting if notes.get(files.files[0]) == reason]
        log.info("not judged, %d files: %s", len(concerned), reason)
        commands = [files.task.evaluator.full_command(files.files, files.command) for files in concerned]
        for command in dict.fromkeys(commands):
            log.info("    %s", command)


def files_to_evaluate(results_dir: Path) -> Iterator[AnswerFiles]:
    """All files below `results_dir` whose task has an evaluator. Damaged records are skipped here; they are reported
    where scores are collected."""
    for scores in scores_files(results_dir):
        try:
            records = read_task_records(scores.path)
        except UserError:
            continue
        for task, record in records.items():
            try:
                check_record(scores.path, task, record, scores.places.root)
            except UserError:
                continue
            files = own_files(record, scores.places.root)
            command = own_evaluator_command(record.get("evaluator_command") or "", record, scores.places.root)
            if task in TASKS and TASKS[task].evaluator is not None and files and command:
                data_dir = None if record.get("data_dir") is None else Path(record["data_dir"])
                release = options_of_record(record, "").get("livebench_release")
                yield AnswerFiles(TASKS[task], tuple(files), command, data_dir, release)
