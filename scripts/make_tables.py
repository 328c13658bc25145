"""Write every score below a results folder to one CSV, and make the paper's tables with the published values."""

import sys

if __name__ in ("__main__", "__mp_main__"):  # before the imports, which take a while
    from utils.interrupts import prepare_process

    prepare_process(__name__)

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.paper_tables.answers import write_answers
from scripts.paper_tables.collect import collect_scores
from scripts.paper_tables.figures import FIGURES
from scripts.paper_tables.method_scores import collect_methods
from scripts.paper_tables.method_table import methods_csv, methods_table
from scripts.paper_tables.overview import overview_table
from scripts.paper_tables.results import ResultsFolder
from scripts.paper_tables.scores import OK, Score, scores_csv, summaries
from scripts.paper_tables.tables import html_page, latex, markdown, paper_tables
from utils.command_line import OneLineParser
from utils.errors import run_command_line
from utils.run_log import logged_run
from utils.whole_files import write_whole

log = logging.getLogger(__name__)

NO_TABLES = "No merges, and no results of the paper's tables: see scores.csv, and tables.html with single answers.\n"


def main(arguments: Sequence[str] | None = None) -> None:
    with_scores(make_tables, "scripts/make_tables.py", __doc__, arguments)


def with_scores(
    write: Callable[[Path, list[Score]], None], script: str, description: str | None, arguments: Sequence[str] | None
) -> None:
    """Parse the command line of a script that takes a results folder, and pass the folder and its scores to `write`."""
    layout = argparse.RawDescriptionHelpFormatter
    examples = f"examples:\n  python {script} paper_results_tiny\n  python {script} DIR   # any --output_dir of runs"
    parser = OneLineParser(description=description, epilog=examples, formatter_class=layout, allow_abbrev=False)
    parser.add_argument("results_dir", type=Path, metavar="RESULTS_DIR", help="folder with results at or below it")
    results_dir = parser.parse_args(arguments).results_dir
    with logged_run():
        write(results_dir, collect_scores(results_dir))


def make_tables(results_dir: Path, scores: Sequence[Score]) -> None:
    """Write tables/scores.csv, tables.md, tables.html with a page of single answers, a .tex for each table, and
    methods.csv if methods were compared; log missing and doubtful scores."""
    folder = results_dir / "tables"
    tables, methods = paper_tables(scores), collect_methods(ResultsFolder(results_dir))
    overview = overview_table(summaries(scores))
    if overview.rows:
        tables.insert(0, overview)
    if methods:
        tables.append(methods_table(methods))
        write_whole(folder / "methods.csv", methods_csv(methods))
    drawn = [name for name in FIGURES if (results_dir / "figures" / f"{name}.svg").is_file()]
    pictures = {f"../figures/{name}.svg": FIGURES[name][1] for name in drawn}
    write_whole(folder / "scores.csv", scores_csv(scores))
    write_whole(folder / "tables.md", markdown(tables) if tables else NO_TABLES)
    results = [result.cells(folder) for result in write_answers(folder, scores)]
    results.sort(key=lambda row: row["status"] != OK)  # those without a value last
    write_whole(folder / "tables.html", html_page("Tables and figures", tables, pictures, results))
    for table in tables:
        write_whole(folder / f"{table.name}.tex", latex(table))
    for line in doubts(scores):
        log.info(line)
    for method in methods:
        if method.note:
            log.info("missing, %s %s: %s", method.models, method.method, method.note)
    log.info("tables: %s", folder)


def doubts(scores: Sequence[Score]) -> list[str]:
    """A line for each reason why scores have no value, and one for scores of faulty answers. Each gives the number of
    these scores and names the first."""
    by_reason: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        if score.status != OK:
            by_reason.setdefault((score.status, score.note), []).append(score)
    lines = [
        f"{status}, {len(concerned)} ({_first(concerned)}): {note}" for (status, note), concerned in by_reason.items()
    ]
    faulty = [score for score in scores if score.health is not None and score.health.warning()]
    if faulty:
        lines.append(f"check the completions of {len(faulty)} ({_first(faulty)}): {faulty[0].health.warning()}")
    return lines


def _first(scores: Sequence[Score]) -> str:
    """The name of the first score, followed by `...` if there are more."""
    first = scores[0]
    name = " ".join(filter(None, (first.models, first.method, first.variant, first.dataset, first.attack)))
    seed = "" if first.seed is None else f" seed {first.seed}"
    return f"{name}{seed}{', ...' if len(scores) > 1 else ''}"


if __name__ == "__main__":
    sys.exit(run_command_line(main))
