"""Run the evaluators that are installed on the files that runs wrote; print the commands that remain for the others."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from inference_llms.task import AnswerFiles
from inference_llms.tasks import TASKS
from scripts.paper_tables.commands import Setting
from scripts.paper_tables.stored_results import (
    check_record,
    own_evaluator_command,
    own_files,
    read_task_records,
    scores_files,
)
from utils.errors import UserError
from utils.whole_files import write_json

log = logging.getLogger(__name__)

NOTES = "paper_evaluators.json"  # below the results' folder: why a file was not scored
NEEDS_PERMISSION = "needs --allow_code_execution: it runs generated programs"


def evaluate(setting: Setting, allow_code_execution: bool) -> None:
    """Score all files that have no result yet. Failures and missing evaluators are printed and recorded; no failure
    stops another evaluator."""
    waiting = [
        files for files in files_to_evaluate(setting.results_dir) if not files.task.evaluator.has_scored(files.files)
    ]
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
    write_json(
        setting.results_dir / NOTES, {note_key(setting.results_dir, file): reason for file, reason in notes.items()}
    )
    for reason in dict.fromkeys(notes.values()):
        concerned = [files for files in waiting if notes.get(files.files[0]) == reason]
        log.info("not judged, %d files: %s", len(concerned), reason)
        for command in dict.fromkeys(
            files.task.evaluator.full_command(files.files, files.command) for files in concerned
        ):
            log.info("    %s", command)


def note_key(results_dir: Path, file: Path) -> str:
    """A file's key in the notes, which stays right if the results folder is moved."""
    return os.path.relpath(file, results_dir)


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
                release = (record.get("options") or {}).get("livebench_release")
                yield AnswerFiles(TASKS[task], tuple(files), command, data_dir, release)
