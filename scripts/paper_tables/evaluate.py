"""Call the evaluators that are installed on the files that runs wrote; say which commands remain for the others."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.paper_tables.commands import Setting
from scripts.paper_tables.evaluator_results import command_to_type
from scripts.paper_tables.judge_answers import judge_answers
from scripts.paper_tables.judge_livebench import CATEGORIES, RUNS_PROGRAMS, judge_livebench
from scripts.paper_tables.judge_programs import judge_programs
from scripts.paper_tables.stored_results import (
    check_record,
    own_evaluator_command,
    own_files,
    read_task_records,
    scores_files,
)
from scripts.paper_tables.to_judge import (
    ASK_FIRST,
    BROKEN,
    JUDGED_TASKS,
    PROGRAM_TASKS,
    ToJudge,
    note_key,
    read_judged,
    reason_of,
)
from utils.errors import UserError
from utils.whole_files import write_json

log = logging.getLogger(__name__)

NOTES = "paper_evaluators.json"  # below the results' folder: why a file was not judged


def evaluate(setting: Setting, allow_code_execution: bool) -> None:
    """Judge whatever is not judged yet. What an evaluator cannot do, or is not there to do, is told and put on record;
    no failure stops another evaluator."""
    waiting = [item for item in files_to_judge(setting.results_dir) if not is_judged(item)]
    notes: dict[str, str] = {}
    for task in dict.fromkeys(item.task for item in waiting):
        items = [item for item in waiting if item.task == task]
        try:
            notes |= _judge(task, items, setting, allow_code_execution)
        except BROKEN as error:
            notes |= {item.key: reason_of(error) for item in items}
    on_record = {note_key(setting.results_dir, Path(key)): reason for key, reason in notes.items()}
    write_json(setting.results_dir / NOTES, on_record)
    for reason in dict.fromkeys(notes.values()):
        concerned = [item for item in waiting if notes.get(item.key) == reason]
        log.info("not judged, %d files: %s", len(concerned), reason)
        for command in dict.fromkeys(command_to_type(item.task, item.files, item.command) for item in concerned):
            log.info("    %s", command)


def _judge(task: str, items: Sequence[ToJudge], setting: Setting, allow_code_execution: bool) -> dict[str, str]:
    if task in (*PROGRAM_TASKS, RUNS_PROGRAMS) and not allow_code_execution:
        return {item.key: ASK_FIRST for item in items}
    if task in PROGRAM_TASKS:
        return judge_programs(task, items)
    return judge_livebench(task, items) if task in CATEGORIES else judge_answers(items, setting)


def files_to_judge(results_dir: Path) -> Iterator[ToJudge]:
    """Whatever a scores file below `results_dir` names an evaluator for that is known here. What is not whole is left
    out: it is told where scores are collected."""
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
            if task in JUDGED_TASKS and files and command:
                data_dir = None if record.get("data_dir") is None else Path(record["data_dir"])
                yield ToJudge(task, tuple(files), command, data_dir)


def is_judged(item: ToJudge) -> bool:
    """Whether there is a result of an evaluator, of the files as they are now."""
    try:
        return read_judged(item.task, item.files) is not None
    except UserError:
        return False
