"""Every score below a results' folder, whatever produced it, with what made it; and what is missing, and why."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from scripts.paper_tables.attack_scores import attack_scores
from scripts.paper_tables.cells_on_record import CellOnRecord
from scripts.paper_tables.found import Found
from scripts.paper_tables.jobs import DONE, FAILED, RUNNING
from scripts.paper_tables.names import DATA_SETS, METHODS
from scripts.paper_tables.score import CONFLICT, MISSING, NO_VALUE, OK, UNREADABLE, Score, without_value
from scripts.paper_tables.task_scores import task_scores
from utils.errors import UserError


def collect_scores(results_dir: Path) -> list[Score]:
    """All scores, in the order of models, methods and data sets; a line for what is missing, broken or in doubt.

    Raises UserError where there is neither a result nor a cell."""
    if not results_dir.is_dir():
        raise UserError(f"{results_dir}: no such folder; run a script of scripts/paper first")
    found = Found(results_dir)
    scores = [*task_scores(found), *attack_scores(found)]
    scores += _missing_scores(found, scores)
    for path, reason in found.broken_cells.items():
        scores.append(without_value({"variant": path.stem, "result_file": str(path)}, "", "", UNREADABLE, reason))
    if not scores:
        raise UserError(f"{results_dir} holds no results; run a script of scripts/paper first")
    return sorted(mark_conflicts(scores), key=_order)


def mark_conflicts(scores: Iterable[Score]) -> list[Score]:
    """The scores, with those marked and their values taken away that claim the same place with different values. Of
    copies that agree the first stays, and every result beside it that has no value, with its reason."""
    by_place: dict[tuple, list[Score]] = {}
    for score in scores:
        by_place.setdefault((*score.line, score.draw), []).append(score)
    kept = []
    for rivals in by_place.values():
        there = [rival for rival in rivals if rival.status == OK]
        if len({(rival.value, rival.examples) for rival in there}) > 1:
            told = "; ".join(f"{rival.value:.1f} in {rival.result_file}" for rival in there)
            there = [replace(rival, **NO_VALUE, status=CONFLICT, note=told) for rival in there]
        else:
            there = there[:1]
        lacking = [rival for rival in rivals if rival.status != OK]
        results = [rival for rival in lacking if rival.result_file]
        kept += [*there, *results] or lacking[:1]
    return kept


def _missing_scores(found: Found, scores: Iterable[Score]) -> Iterator[Score]:
    """A line for every result that a cell on record should have left and has not."""
    there = {(score.line, score.draw) for score in scores}
    broken_files = {score.result_file: score.note for score in scores if not score.dataset}
    for cell in found.cells:
        about_merge = found.about(cell.places)
        reason = _why_missing(cell)
        if not cell.cell.attacks:
            reason = broken_files.get(str(cell.places.scores()), reason)
        for task, attack in [(task, attack) for task in cell.cell.tasks for attack in cell.cell.attacks or [""]]:
            about = {**about_merge, **found.commands(cell.places, cell.cell.script, task, attack)}
            score = without_value(about, DATA_SETS.get(task, (task, 0))[0], attack, MISSING, reason)
            if (score.line, score.draw) not in there:
                yield score


def _why_missing(cell: CellOnRecord) -> str:
    if cell.status == DONE:
        return f"the cell ran, and its result is not there any more; remove {cell.path} and run its script again"
    if cell.status == FAILED:
        return f"failed: {cell.reason}"
    return "interrupted, or running now" if cell.status == RUNNING else "not run yet"


def _order(score: Score) -> tuple:
    names = [name for name, _ in DATA_SETS.values()]
    methods = list(METHODS.values())
    return (
        score.models.count("&"),
        score.models,
        methods.index(score.method) if score.method in methods else len(methods),
        score.method,
        score.variant,
        score.dare,
        score.mixup,
        score.alpha or 0,
        names.index(score.dataset) if score.dataset in names else len(names),
        score.attack,
        -1 if score.seed is None else score.seed,
    )
