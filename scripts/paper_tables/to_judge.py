"""Files that wait for an evaluator, and what the calls of all evaluators share."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.paper_tables.guard import program_name
from utils.errors import UserError

ASK_FIRST = "needs --allow_code_execution: it runs generated programs"


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


def each(items: Sequence[ToJudge], judge: Callable[[ToJudge], None]) -> dict[str, str]:
    """Call `judge` on every item; why it failed on some, by key."""
    notes = {}
    for item in items:
        try:
            judge(item)
        except (UserError, OSError, ValueError, KeyError) as error:
            notes[item.key] = str(error)
    return notes


def run_evaluator(words: Sequence[str], folder: Path | None = None) -> None:
    """Run an evaluator that executes no generated programs. Raises UserError with its last word where it fails."""
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise UserError(f"{program_name(words)} failed: {last}")


def installed(program: str) -> str | None:
    """A program of this environment, or of the PATH."""
    beside = Path(sys.executable).with_name(program)
    return str(beside) if beside.is_file() else shutil.which(program)
