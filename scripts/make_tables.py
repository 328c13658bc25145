"""Every score in a results' folder, whatever produced it, as one CSV; and the paper's tables of them, beside the
published values: python scripts/make_tables.py RESULTS_DIR"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.paper_tables.collect import collect_scores
from scripts.paper_tables.rendering import html_page, latex, markdown
from scripts.paper_tables.score import OK, Score, scores_csv
from scripts.paper_tables.tables import paper_tables
from utils.command_line import OneLineParser
from utils.errors import run_command_line
from utils.run_log import logged_run
from utils.whole_files import write_whole

log = logging.getLogger(__name__)

FIGURES = ("performance", "robustness", "dare", "alpha")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("results_dir", type=Path, metavar="RESULTS_DIR")
    results_dir = parser.parse_args(arguments).results_dir
    with logged_run():
        make_tables(results_dir)


def make_tables(results_dir: Path) -> None:
    """Write tables/scores.csv, tables.md, tables.html and a .tex for each table; tell what is missing or in doubt."""
    scores = collect_scores(results_dir)
    folder = results_dir / "tables"
    tables = paper_tables(scores)
    write_whole(folder / "scores.csv", scores_csv(scores))
    write_whole(folder / "tables.md", markdown(tables))
    write_whole(folder / "tables.html", html_page(tables, [f"../figures/{name}.svg" for name in FIGURES]))
    for table in tables:
        write_whole(folder / f"{table.name}.tex", latex(table))
    for line in doubts(scores):
        log.info(line)
    log.info("tables: %s", folder)


def doubts(scores: Sequence[Score]) -> list[str]:
    """A line for each reason why scores have no value, with how many, and one of them named."""
    by_reason: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        if score.status != OK:
            by_reason.setdefault((score.status, score.note), []).append(score)
    lines = []
    for (status, note), of_reason in by_reason.items():
        first = of_reason[0]
        what = " ".join(filter(None, (first.models, first.method, first.variant, first.dataset, first.attack)))
        seed = "" if first.seed is None else f" seed {first.seed}"
        lines.append(f"{status}, {len(of_reason)} ({what}{seed}{', ...' if len(of_reason) > 1 else ''}): {note}")
    return lines


if __name__ == "__main__":
    sys.exit(run_command_line(main))
