"""The command line of what is made of the scores in a results' folder."""

from collections.abc import Callable, Sequence
from pathlib import Path

from scripts.paper_tables.collect import collect_scores
from scripts.paper_tables.score import Score
from utils.command_line import OneLineParser
from utils.run_log import logged_run


def with_scores(
    write: Callable[[Path, list[Score]], None], description: str | None, arguments: Sequence[str] | None
) -> None:
    """Collect the scores of RESULTS_DIR, the one argument, and call `write` with both."""
    parser = OneLineParser(description=description, allow_abbrev=False)
    parser.add_argument("results_dir", type=Path, metavar="RESULTS_DIR")
    results_dir = parser.parse_args(arguments).results_dir
    with logged_run():
        write(results_dir, collect_scores(results_dir))
