"""Files that wait for an evaluator, those that were judged, and what the calls of all evaluators share."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from inference_llms.evaluators.guard import program_name
from scripts.paper_tables.evaluator_results import (
    Judged,
    programs_of_file,
    read_alpaca_eval,
    read_livebench,
    read_programs,
)
from scripts.paper_tables.judged_files import hash_lines, set_files
from utils.errors import UserError
from utils.json_files import read_json_lines

ASK_FIRST = "needs --allow_code_execution: it runs generated programs"
PROGRAM_TASKS = ("human_eval", "mbpp")
# The tasks whose evaluators' results are read here.
JUDGED_TASKS = ("alpaca_eval", *PROGRAM_TASKS, "instruction_following", "coding")
# What reading a broken file, or a sound one of another form, may end in.
BROKEN = (UserError, OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, ZeroDivisionError)


@dataclass(frozen=True)
class ToJudge:
    """Files of one task of one run, the evaluator's command of the README, and where that run looked for the set's
    files."""

    task: str
    files: tuple[Path, ...]
    command: str
    data_dir: Path | None

    @property
    def key(self) -> str:
        """What notes on it are kept by."""
        return str(self.files[0])


def hashes_to_judge(item: ToJudge) -> str:
    """The hashes of all that an evaluator's result depends on: a run's files, and the set that they are judged by."""
    return hash_lines([*item.files, *set_files(item.task, item.data_dir)])


def note_key(results_dir: Path, file: Path) -> str:
    """The same on record, where it must hold for a results' folder that was moved."""
    return os.path.relpath(file, results_dir)


def read_judged(task: str, files: Sequence[Path]) -> Judged | None:
    """What the evaluator of one of `JUDGED_TASKS` found of a run's files; None where it has not judged them. Raises
    UserError where its result or the files are not whole."""
    if not files:
        raise UserError(f"the record of {task} names no file for its evaluator; run its command again")
    try:
        if task in PROGRAM_TASKS:
            return read_programs(task, files[0])
        return read_alpaca_eval(files[0]) if task == "alpaca_eval" else read_livebench(files)
    except BROKEN as error:
        raise _told_of(files[0], error) from error


def judged_ids(task: str, files: Sequence[Path]) -> list[int | str]:
    """The examples of a run's files, in the order of `read_judged`'s values, by what the files know them by. Raises
    UserError where a file is not whole."""
    try:
        if task in PROGRAM_TASKS:
            return [name for name, _ in programs_of_file(task, files[0])]
        if task == "alpaca_eval":
            return [row["instruction"] for row in json.loads(files[0].read_text(encoding="utf-8"))]
        return [row["question_id"] for file in files for row in read_json_lines(file, "remove it")]
    except BROKEN as error:
        raise _told_of(files[0], error) from error


def _told_of(file: Path, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    return UserError(f"{file}, or what its evaluator left beside it, is not whole: {reason_of(error)}")


def reason_of(error: Exception) -> str:
    """An error in the words of a note."""
    return f"{error} is not found" if isinstance(error, KeyError) else str(error)


def each(items: Sequence[ToJudge], judge: Callable[[ToJudge], None]) -> dict[str, str]:
    """Call `judge` on every item; why it failed on some, by key."""
    notes = {}
    for item in items:
        try:
            judge(item)
        except BROKEN as error:
            told = error if isinstance(error, UserError | OSError) else _told_of(item.files[0], error)
            notes[item.key] = str(told)
    return notes


def run_evaluator(words: Sequence[str], folder: Path | None = None, variables: Mapping[str, str] | None = None) -> None:
    """Run an evaluator that executes no generated programs. Raises UserError with its last word where it fails."""
    environment = os.environ | dict(variables or {})
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise UserError(f"{program_name(words)} failed: {last}")


def installed(program: str) -> str | None:
    """A program of this environment, or of the PATH."""
    beside = Path(sys.executable).with_name(program)
    return str(beside) if beside.is_file() else shutil.which(program)
