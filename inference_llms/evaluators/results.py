"""Evaluators' verdicts, and the files kept beside a result: its command, and hashes of the files it scored.

Hashes are in the format of sha256sum. Users who run an evaluator themselves leave them too, by the printed command.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference_llms.evaluators.guard import program_name
from utils.errors import UserError

# Where scripts/setup_evaluators.sh makes an environment for each tool.
EVALUATORS = Path(__file__).resolve().parents[2] / ".venv_evaluators"
SET_UP = ".set_up"  # in an environment that is complete
TOOLS = ("alpaca_eval", "evalplus", "bigcode-evaluation-harness", "livebench")  # that scripts/setup_evaluators.sh knows
# Errors from reading files that are damaged or have another form.
BROKEN = (ValueError, KeyError, TypeError, IndexError, AttributeError, ZeroDivisionError)
_HASH_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
# The folders of evaluators' files, which a run writes below its own root.
_FOLDER_OF_FILES = re.compile(r"save_\w+_results")


@dataclass(frozen=True)
class Verdicts:
    """An evaluator's verdicts: `score` is the share of `examples` that are right, by `metric`.

    `values`: the verdict on each example, 0 to 1, in the order of the files; None if the evaluator reports only the
    score. `ids`: the ids of these examples in the files. `command`: the evaluator's command that scored; empty
    if no program did, None if a user ran it. `note`: a remark for tables.
    """

    metric: str
    score: float
    examples: int
    values: tuple[float, ...] | None = None
    ids: tuple[int | str, ...] = ()
    command: str | None = None
    note: str = ""


def verdicts_of(metric: str, ids: Sequence[int | str], values: Sequence[float], command: str | None = None) -> Verdicts:
    """Verdicts with one value per example."""
    return Verdicts(metric, sum(values) / len(values), len(values), tuple(map(float, values)), tuple(ids), command)


def command_file(result: Path) -> Path:
    """The file beside a result with the command that wrote it."""
    return result.with_name(f"{result.name}.command")


def hashes_file(result: Path) -> Path:
    """The file beside a result with the hashes of the files it was computed from."""
    return result.with_name(f"{result.name}.sha256")


def read_command(result: Path) -> str | None:
    path = command_file(result)
    return path.read_text(encoding="utf-8").rstrip("\n") if path.is_file() else None


def hash_lines(files: Sequence[Path]) -> str:
    """A line for each file, as sha256sum writes it."""
    return "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.absolute()}\n" for file in files)


def hashing_command(result: Path, files: Sequence[Path]) -> str:
    """The shell command that writes these lines beside a result."""
    return f"{shlex.join(['sha256sum', *map(str, files)])} > {shlex.quote(str(hashes_file(result)))}"


def check_hashes(result: Path, files: Sequence[Path]) -> bool:
    """Whether there are hashes beside a `result`. Raises UserError if they do not match `files`, or a set's file that
    still exists."""
    path = hashes_file(result)
    if not path.is_file():
        return False
    try:
        matches = [_HASH_LINE.fullmatch(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError:
        matches = [None]
    if not all(matches):
        raise UserError(f"{path} is not in the format of sha256sum; remove it together with {result.name}")
    root = root_of_file(result)
    scored = [(file_below(root, Path(match[2])), match[1]) for match in matches]
    names = {file.name for file in files}
    # A set may be on another machine; the files themselves may have moved.
    sets = [file for file, _ in scored if file.name not in names and file.is_file()]
    for file in (*files, *sets):
        current = hashlib.sha256(file.read_bytes()).hexdigest()
        if current not in {recorded for other, recorded in scored if other.name == file.name}:
            raise UserError(f"{result} belongs to another version of {file.name}; rerun the evaluator")
    return True


def file_below(root: Path | None, recorded: Path) -> Path:
    """The current path of a recorded file, if the run's outputs are now below `root`."""
    tail = path_below_root(recorded)
    return recorded if tail is None or root is None else root.absolute() / tail


def root_of_file(path: Path) -> Path | None:
    """The root of outputs that holds a file for an evaluator; None if none does."""
    tail = path_below_root(path)
    return None if tail is None else path.parents[len(tail.parts) - 1]


def path_below_root(path: Path) -> Path | None:
    """The part of a path below the root of outputs; None if it is not below one."""
    numbers = [number for number, part in enumerate(path.parts) if _FOLDER_OF_FILES.fullmatch(part)]
    return Path(*path.parts[numbers[-1] :]) if numbers else None


def checked_share(value: Any, path: Path) -> float:
    """A number from 0 to 1 that was read from `path`."""
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise UserError(
            f"{path}: a score is {value!r}, not a number from 0 to 1; remove it, and the evaluator runs again"
        )
    return float(value)


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"cannot read {path} ({error}); remove it") from error


@contextmanager
def errors_in_one_line(file: Path) -> Iterator[None]:
    """Raise UserError for the errors that damaged files, or a damaged result beside them, cause."""
    try:
        yield
    except OSError as error:
        raise UserError(str(error)) from error
    except BROKEN as error:
        reason = f"{error} is not found" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{file}, or the evaluator's result beside it, is damaged: {reason}") from error


def run_evaluator(words: Sequence[str], folder: Path | None = None, variables: Mapping[str, str] | None = None) -> None:
    """Run an evaluator that executes no generated programs. Raises UserError with its reason if it fails."""
    environment = os.environ | dict(variables or {})
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = last_reason(done.stderr) or f"status {done.returncode}"
        raise UserError(f"{program_name(words)} failed: {reason}")


def last_reason(stderr: str) -> str:
    """The last line with words; if an error's name is alone on its line, that name and the next line."""
    lines = [line.strip() for line in stderr.splitlines() if re.search(r"\w", line)]
    names = [number for number, line in enumerate(lines) if re.fullmatch(r"[\w.]+(Error|Exception):", line)]
    return " ".join(lines[names[-1] :][:2] if names else lines[-1:])


def evaluator_program(name: str, tool: str | None = None) -> str:
    """A program for a printed command: its path in the environment that scripts/setup_evaluators.sh made for the tool,
    if there is one, else its name."""
    environment = EVALUATORS / (tool or name)
    path = environment / "bin" / name
    return str(path) if path.is_file() and (environment / SET_UP).is_file() else name


def installed_program(name: str, tool: str | None = None) -> str:
    """The path of a program in its tool's environment, in this one, or on the PATH. Raises UserError if it is not
    installed."""
    own, beside = Path(evaluator_program(name, tool)), Path(sys.executable).with_name(name)
    path = next((str(path) for path in (own, beside) if path.is_absolute() and path.is_file()), shutil.which(name))
    if path is None:
        raise UserError(f"{name} is not installed; run `bash scripts/setup_evaluators.sh {tool or name}`")
    return path


def to_type(command: str, evaluator: str) -> list[str]:
    """A recorded command as a user can run it, in lines: with the path of a program that is not on the PATH, and with
    what installs one that is missing."""
    if evaluator in TOOLS:
        is_set_up = (EVALUATORS / evaluator / SET_UP).is_file()
        return [command] if is_set_up else [command, f"before: bash scripts/setup_evaluators.sh {evaluator}"]
    program, _, options = command.partition(" ")
    beside = Path(sys.executable).with_name(program)
    if shutil.which(program) is None and beside.is_file():
        return [f"{shlex.quote(str(beside))} {options}"]
    return [command]


def check_versions(program: str, needed: Mapping[str, str], tool: str) -> None:
    """Raise UserError unless the environment of a tool's program has the needed versions of packages. An environment
    whose interpreter is not beside the program is not checked."""
    python = Path(program).with_name("python")
    if not python.is_file():
        return
    from packaging.specifiers import SpecifierSet  # slow to import, and needed only to run a tool

    code = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"
    done = subprocess.run([python, "-c", code, *needed], capture_output=True, text=True, check=False)
    found = done.stdout.split() if done.returncode == 0 else []
    for (package, wanted), version in zip(needed.items(), found, strict=bool(found)):
        if not SpecifierSet(wanted).contains(version, prereleases=True):
            raise UserError(
                f"{program}: {package} {version} is installed there, and {wanted} works; run "
                f"`bash scripts/setup_evaluators.sh {tool}`"
            )
