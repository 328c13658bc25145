"""The cells of tables that are on record below a results' folder: what made a result, and what should have left one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.paper_tables.cell import ATTACKS, STATES, Cell, StateShape, cell_of_text
from scripts.paper_tables.commands import CLASSIFIER_RESULTS
from scripts.paper_tables.jobs import DONE
from scripts.paper_tables.merge_facts import about_words
from utils.errors import UserError
from utils.json_files import check_shape, read_json_object
from utils.output_places import OutputPlaces

REMEDY = "remove it and run its script again"


@dataclass(frozen=True)
class CellOnRecord:
    """A cell, the places of its outputs, what became of it, its `commands` in their order, and what its words tell
    `about` its merge. `started`: seconds since 1970, 0 of a cell that is not done."""

    path: Path
    cell: Cell
    places: OutputPlaces
    status: str
    reason: str
    commands: tuple[str, ...]
    started: float
    about: dict[str, Any]

    def asked(self, places: OutputPlaces, script: str, task: str, attack: str) -> bool:
        """Whether it ran `script` for a result of `task` (and `attack`, unless that is empty) at these places."""
        asks = self.cell.script == script and task in self.cell.tasks and (not attack or attack in self.cell.attacks)
        return asks and self.places == places


def read_cells_on_record(results_dir: Path) -> tuple[list[CellOnRecord], dict[Path, str]]:
    """The cells, and why the files of others cannot be read."""
    cells, broken = [], {}
    for path in sorted((results_dir / STATES).glob("*.json")):
        try:
            cells.append(_read_cell(results_dir, path))
        except UserError as error:
            broken[path] = str(error)
    return cells, broken


def cell_that_asked(
    cells: Sequence[CellOnRecord], places: OutputPlaces, script: str, task: str, attack: str = ""
) -> CellOnRecord | None:
    """Of the cells that asked for a result the one that ended last; one that has not ended where none has."""
    asked = [cell for cell in cells if cell.asked(places, script, task, attack)]
    return max(asked, key=lambda cell: (cell.status == DONE, cell.started), default=None)


def _read_cell(results_dir: Path, path: Path) -> CellOnRecord:
    state = read_json_object(path, REMEDY)
    try:
        check_shape(str(path), state, StateShape, REMEDY)
        cell = cell_of_text(state["cell"])
        is_classifier = cell.script.startswith(ATTACKS) and Path(state["root"]).name == CLASSIFIER_RESULTS
        places = OutputPlaces(
            results_dir / CLASSIFIER_RESULTS if is_classifier else results_dir, state["tasks_name"], state["name"]
        )
        commands, started = tuple(state["commands"]), float(state.get("started") or 0)
        # These read the cell's words, and fail here rather than where they are needed.
        about, _, _ = about_words(cell.merge), cell.tasks, cell.attacks
    except (UserError, KeyError, ValueError, TypeError, IndexError) as error:
        raise UserError(f"{path} is not the whole record of a cell; {REMEDY}") from error
    return CellOnRecord(path, cell, places, state["status"], state.get("reason") or "", commands, started, about)
