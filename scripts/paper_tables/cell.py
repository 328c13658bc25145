"""A cell of a table as data: which merge, what is asked of it, and what became of that."""

import hashlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from inference_llms.tasks import TASKS_OF_ROLE
from utils.errors import UserError
from utils.json_files import read_shaped_object
from utils.whole_files import write_json

MAIN_JOB = "merge_llms_instruct_math_code.py"
ATTACKS = "promptbench/"  # how the scripts of attacks begin
LIVEBENCH = "ood_robust_inference.py"
MERGED = "MERGED"  # stands in a cell's words for the folder of its merge
STATES = "paper_cells"  # below the results' folder


@dataclass(frozen=True)
class Cell:
    """A command of an entry script whose results stand in `tables`.

    `merge`: the main job's options that make the model. `words`: the script and its options, `MERGED` for that model's
    folder; the main job itself, where the cell is its tasks.
    """

    tables: tuple[str, ...]
    merge: tuple[str, ...]
    words: tuple[str, ...]

    @property
    def script(self) -> str:
        return self.words[0]

    @property
    def name(self) -> str:
        """Readable, and another for another cell."""
        text = shlex.join([*self.merge, *self.words])
        shown = [word for word in text.replace(MAIN_JOB, "").split() if word != MERGED]
        slug = re.sub(r"[^\w.]+", "_", " ".join(word.removeprefix("--") for word in shown)).strip("_")
        return f"{slug[:120]}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def tasks(self) -> list[str]:
        """The tasks, or attacked sets, that it asks."""
        if self.script.startswith(ATTACKS):
            return [Path(self.script).stem]
        if self.script == LIVEBENCH:
            return option_values("--evaluate_task", self.words)
        if "--tasks" in self.merge:
            return option_values("--tasks", self.merge)
        return [task for role, tasks in TASKS_OF_ROLE.items() if f"--merge_{role}" in self.merge for task in tasks]

    @property
    def attacks(self) -> list[str]:
        """The attacks on the set's prompt; none of a cell that attacks nothing."""
        return option_values("--attack_method", self.words) if self.script.startswith(ATTACKS) else []

    def check(self) -> None:
        """Raise UserError where the words do not tell what the results will be of."""
        if self.script.startswith(ATTACKS) and (not self.attacks or "all" in self.attacks):
            raise UserError("--attack_method: name each attack, for each has a row in the tables; `all` names none")
        if self.script == LIVEBENCH and len(self.tasks) != 1:
            raise UserError("--evaluate_task: name the task, for the tables go by it")


def option_values(option: str, words: Sequence[str]) -> list[str]:
    """The words behind an option, up to the next one; none where it is not there."""
    behind = words[words.index(option) + 1 :] if option in words else ()
    return list(takewhile(lambda word: not word.startswith("--"), behind))


def cell_of_text(text: str) -> Cell:
    """The cell that a state tells of as its merge, `--`, and its words."""
    words = shlex.split(text)
    return Cell((), tuple(words[: words.index("--")]), tuple(words[words.index("--") + 1 :]))


def read_cells(path: Path) -> list[Cell]:
    """The cells that the tables' shell scripts listed: a line each, of table, merge and words, parted by tabs
    and quoted for the shell. A cell that several tables share stands there once, with all of them."""
    cells: dict[tuple, Cell] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        parts = line.split("\t")
        if len(parts) != 3:
            raise UserError(f"{path} line {number}: no cell; list them with the functions of scripts/paper/shared.sh")
        table, merge, words = parts
        cell = Cell((table,), tuple(shlex.split(merge)), tuple(shlex.split(words)))
        if cell.script == MAIN_JOB:
            cell = replace(cell, merge=cell.words[1:], words=(MAIN_JOB,))
        known = cells.get((cell.merge, cell.words))
        if known is not None:
            cell = replace(known, tables=tuple(dict.fromkeys((*known.tables, table))))
        cells[cell.merge, cell.words] = cell
    return list(cells.values())


@dataclass(frozen=True)
class InputsShape:
    """What a cell was run with: its commands, and the hashes of its models and sets by name."""

    commands: list[str]
    hashes: dict[str, str]


@dataclass(frozen=True)
class StateShape:
    """The fields of a cell's state that are read again."""

    cell: str
    status: str
    commands: list[str]
    root: str
    tasks_name: str
    name: str
    reason: str | None = None
    started: float | None = None
    seconds: float | None = None
    inputs: InputsShape | None = None


def state_path(results_dir: Path, cell: Cell) -> Path:
    return results_dir / STATES / f"{cell.name}.json"


def read_state(results_dir: Path, cell: Cell) -> dict[str, Any]:
    """What is on record of a cell; empty where nothing is that can be read."""
    try:
        return read_shaped_object(state_path(results_dir, cell), StateShape, "")
    except UserError:
        return {}


def write_state(results_dir: Path, cell: Cell, commands: Sequence[str], **about: Any) -> None:
    """Put a cell on record: its `commands` as they stand in a shell at the project's root, and what is known `about` it
    (`status`: planned, running, done or failed; `root`, `tasks_name` and `name` of its merge's places; `reason`;
    `started`, seconds since 1970; `seconds`, `results`, `inputs`)."""
    state = {
        "tables": list(cell.tables),
        "commands": list(commands),
        "cell": shlex.join([*cell.merge, "--", *cell.words]),
        **about,
    }
    write_json(state_path(results_dir, cell), state)
