"""Every score in a results' folder, whatever produced it, as one CSV; and the paper's tables of them, beside the
published values: python scripts/make_tables.py RESULTS_DIR"""

import sys

if __name__ in ("__main__", "__mp_main__"):  # before the imports, which take a while
    from utils.interrupts import prepare_process

    prepare_process(__name__)

import logging
from collections.abc import Sequence
from pathlib import Path

from scripts.paper_tables.figures import FIGURES, figures
from scripts.paper_tables.rendering import html_page, latex, markdown
from scripts.paper_tables.results_folder import with_scores
from scripts.paper_tables.score import OK, Score, scores_csv
from scripts.paper_tables.tables import paper_tables
from utils.errors import run_command_line
from utils.whole_files import write_whole

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    with_scores(make_tables, __doc__, arguments)


def make_tables(results_dir: Path, scores: Sequence[Score]) -> None:
    """Write tables/scores.csv, tables.md, tables.html and a .tex for each table; tell what is missing or in doubt."""
    folder = results_dir / "tables"
    tables = paper_tables(scores)
    drawn = [name for name in figures(scores) if (results_dir / "figures" / f"{name}.svg").is_file()]
    pictures = {f"../figures/{name}.svg": FIGURES[name][1] for name in drawn}
    write_whole(folder / "scores.csv", scores_csv(scores))
    write_whole(folder / "tables.md", markdown(tables))
    write_whole(folder / "tables.html", html_page(tables, pictures))
    for table in tables:
        write_whole(folder / f"{table.name}.tex", latex(table))
    for line in doubts(scores):
        log.info(line)
    log.info("tables: %s", folder)


def doubts(scores: Sequence[Score]) -> list[str]:
    """A line for each reason why scores have no value, with how many, and one of them named; and one for scores of
    faulty answers."""
    by_reason: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        if score.status != OK:
            by_reason.setdefault((score.status, score.note), []).append(score)
    lines = []
    for (status, note), of_reason in by_reason.items():
        lines.append(f"{status}, {len(of_reason)} ({_named(of_reason)}): {note}")
    faulty = [score for score in scores if score.health is not None and score.health.warning()]
    if faulty:
        lines.append(f"check the completions of {len(faulty)} ({_named(faulty)}): {faulty[0].health.warning()}")
    return lines


def _named(scores: Sequence[Score]) -> str:
    """The first of some scores, and whether there are others."""
    first = scores[0]
    what = " ".join(filter(None, (first.models, first.method, first.variant, first.dataset, first.attack)))
    seed = "" if first.seed is None else f" seed {first.seed}"
    return f"{what}{seed}{', ...' if len(scores) > 1 else ''}"


if __name__ == "__main__":
    sys.exit(run_command_line(main))
