"""Draw the paper's figures from the scores below a results folder, as PNG and SVG."""

import sys

if __name__ in ("__main__", "__mp_main__"):  # before the imports, which take a while
    from utils.interrupts import prepare_process

    prepare_process(__name__)

import logging
from collections.abc import Sequence
from pathlib import Path

from scripts.make_tables import with_scores
from scripts.paper_tables.figures import figures
from scripts.paper_tables.scores import Score
from utils.errors import run_command_line
from utils.whole_files import whole_file

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    with_scores(plot_figures, "scripts/plot_figures.py", __doc__, arguments)


def plot_figures(results_dir: Path, scores: Sequence[Score]) -> None:
    """Write figures/NAME.png and .svg for every figure for which there are scores."""
    folder = results_dir / "figures"
    for name, figure in figures(scores).items():
        for ending in ("png", "svg"):
            with whole_file(folder / f"{name}.{ending}") as file:
                figure.savefig(file, format=ending, dpi=150)
    log.info("figures: %s", folder)


if __name__ == "__main__":
    sys.exit(run_command_line(main))
