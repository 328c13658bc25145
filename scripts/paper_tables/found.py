"""What lies below a results' folder beside the scores: cells and merges on record, evaluators' notes."""

from functools import cached_property
from pathlib import Path
from typing import Any

from scripts.paper_tables.cell import MAIN_JOB
from scripts.paper_tables.cells_on_record import CellOnRecord, cell_that_asked, read_cells_on_record
from scripts.paper_tables.evaluate import NOTES, note_key
from scripts.paper_tables.jobs import DONE
from scripts.paper_tables.merge_facts import about_merge, logged_commands, merges_on_record
from utils.errors import UserError
from utils.json_files import read_json_object
from utils.output_places import OutputPlaces


class Found:
    """`cells` and `merges` on record; `broken_cells`: why the files of others cannot be read."""

    def __init__(self, results_dir: Path):
        self.results_dir = results_dir
        self.cells: list[CellOnRecord]
        self.cells, self.broken_cells = read_cells_on_record(results_dir)

    @cached_property
    def merges(self) -> dict[tuple[Path, str], OutputPlaces]:
        return merges_on_record(self.results_dir)

    @cached_property
    def _notes(self) -> dict[str, Any]:
        try:
            return read_json_object(self.results_dir / NOTES, "")
        except UserError:  # none yet; or not whole, and then the next call of the evaluators writes it anew
            return {}

    def why_not_judged(self, file: Path) -> str:
        """What an evaluator's call told of a run's file."""
        untold = "not judged yet: its command stands in scores.csv"
        return str(self._notes.get(note_key(self.results_dir, file), untold))

    def about(self, places: OutputPlaces) -> dict[str, Any]:
        """What is known of a merge, from its record or else from the words of its cell: fields of a score."""
        about = about_merge(places)
        if not about["fingerprint"]:
            about |= next((cell.about for cell in self.cells if cell.places == places), {})
        return about

    def commands(self, places: OutputPlaces, script: str, task: str, attack: str = "") -> dict[str, str]:
        """The commands that made a result: a cell's that is done, else what a merge typed by hand left in its log, else
        those of a cell that has not ended."""
        cell = cell_that_asked(self.cells, places, script, task, attack)
        of_cell = {}
        if cell is not None and cell.commands:
            of_cell = {"command": cell.commands[-1], "merge_command": cell.commands[0]}
            if cell.status == DONE:
                return of_cell
        asked, made = logged_commands(places, task)
        if of_cell and not asked:
            return of_cell
        return {"command": asked if script == MAIN_JOB else "", "merge_command": made}


def check_weights(about: dict[str, Any], fingerprint: str | None) -> None:
    """Raise UserError where a result with this fingerprint of its weights, if it tells, is not that of the merge."""
    record = about["merge_record"]
    if record and not about["fingerprint"]:
        raise UserError(f"{record} is not the whole record of a merge; remove it and make the merge again")
    if about["fingerprint"] and fingerprint not in (None, about["fingerprint"]):
        raise UserError(f"{about['result_file']} holds results of other weights than {record} tells of")
