"""Hashes of the files that an evaluator's result belongs to: beside the result, in the format of sha256sum.

An evaluator that someone runs by hand leaves them too, by the command that this project prints.
"""

import hashlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from inference_llms.tasks import TASKS, livebench_typos
from inference_llms.tasks.livebench import question_sources
from scripts.paper_tables.stored_results import file_below, root_of_file
from utils.errors import UserError
from utils.whole_files import write_whole

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def set_files(task: str, data_dir: Path | None) -> list[Path]:
    """The files in `data_dir` that a task's set, LiveBench's questions or an attacked set come from; none where they
    come from elsewhere."""
    if data_dir is None:
        return []
    if task in TASKS:
        return [data_dir / name for name in TASKS[task].set_files if (data_dir / name).is_file()][:1]
    attacked = data_dir / f"{task}_dev.tsv"
    if attacked.is_file():
        return [attacked]
    return question_sources(livebench_typos.CATEGORY if task == livebench_typos.NAME else task, data_dir)


def hashes_file(result: Path) -> Path:
    return result.with_name(f"{result.name}.sha256")


def hash_lines(files: Sequence[Path]) -> str:
    """A line for each file."""
    return "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.absolute()}\n" for file in files)


def keep_hash_lines(result: Path, lines: str) -> None:
    """Put the lines of what was judged beside a result; they were taken before the evaluator began."""
    write_whole(hashes_file(result), lines)


def hashing_command(result: Path, files: Sequence[Path]) -> str:
    """A shell command that does the same."""
    return f"{shlex.join(['sha256sum', *map(str, files)])} > {shlex.quote(str(hashes_file(result)))}"


def check_hashes(result: Path, files: Sequence[Path]) -> bool:
    """Whether hashes are kept beside a `result`. Raises UserError where they are not those of `files`, or of a set's
    file that is still there."""
    path = hashes_file(result)
    if not path.is_file():
        return False
    try:
        matches = [_LINE.fullmatch(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError:
        matches = [None]
    if not all(matches):
        raise UserError(f"{path}: is not what sha256sum writes; remove it together with {result.name}")
    root = root_of_file(result)
    judged = [(file_below(root, Path(match[2])), match[1]) for match in matches]
    names = {file.name for file in files}
    # A set may be on another machine; the files themselves may have moved.
    sets = [file for file, _ in judged if file.name not in names and file.is_file()]
    for file in (*files, *sets):
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found not in {kept for other, kept in judged if other.name == file.name}:
            raise UserError(f"{result} was found with another {file.name} than there is now; run the evaluator again")
    return True
