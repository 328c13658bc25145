"""Call the evaluators that are installed on the files that runs wrote; say which commands remain for the others."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.paper_tables.commands import Setting
from scripts.paper_tables.evaluator_results import command_to_type, read_alpaca_eval, read_livebench, read_programs
from scripts.paper_tables.judge_answers import judge_answers
from scripts.paper_tables.judge_livebench import CATEGORIES, RUNS_PROGRAMS, judge_livebench
from scripts.paper_tables.judge_programs import judge_programs
from scripts.paper_tables.to_judge import ASK_FIRST, ToJudge
from utils.errors import UserError
from utils.whole_files import write_json

log = logging.getLogger(__name__)

NOTES = "paper_evaluators.json"  # below the results' folder: why a file was not judged
PROGRAM_TASKS = ("human_eval", "mbpp")


def evaluate(setting: Setting, allow_code_execution: bool) -> None:
    """Judge whatever is not judged yet. What an evaluator cannot do, or is not there to do, is told and put on record;
    no failure stops another evaluator."""
    waiting = [item for item in files_to_judge(setting.results_dir) if not is_judged(item)]
    notes: dict[str, str] = {}
    for task in dict.fromkeys(item.task for item in waiting):
        items = [item for item in waiting if item.task == task]
        try:
            notes |= _judge(task, items, setting, allow_code_execution)
        except (UserError, OSError, ValueError, KeyError) as error:
            notes |= {item.key: str(error) for item in items}
    write_json(setting.results_dir / NOTES, notes)
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
    """Whatever a scores file below `results_dir` names an evaluator for."""
    for path in sorted(results_dir.rglob("save_scores/**/*.json")):
        try:
            scores = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue  # told where scores are collected
        for task, score in scores.items():
            if score.get("evaluator_command") and score.get("files"):
                data_dir = None if score.get("data_dir") is None else Path(score["data_dir"])
                files = tuple(Path(file) for file in score["files"])
                yield ToJudge(task, files, score["evaluator_command"], data_dir)


def is_judged(item: ToJudge) -> bool:
    """Whether there is a result of an evaluator, of the files as they are now."""
    try:
        if item.task in PROGRAM_TASKS:
            return read_programs(item.task, item.files[0]) is not None
        if item.task in CATEGORIES:
            return read_livebench(item.files) is not None
        return read_alpaca_eval(item.files[0]) is not None
    except (UserError, KeyError, IndexError):
        return False
