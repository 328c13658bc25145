"""The paper's figures of the scores in a results' folder, as PNG and SVG: python scripts/plot_figures.py RESULTS_DIR"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.paper_tables.figures import figures
from scripts.paper_tables.results_folder import with_scores
from scripts.paper_tables.score import Score
from utils.errors import run_command_line

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    with_scores(plot_figures, __doc__, arguments)


def plot_figures(results_dir: Path, scores: Sequence[Score]) -> None:
    """Write figures/NAME.png and .svg for every figure that there are scores of."""
    folder = results_dir / "figures"
    folder.mkdir(exist_ok=True)
    for name, draw in figures(scores).items():
        figure = draw()
        figure.savefig(folder / f"{name}.png", dpi=150)
        figure.savefig(folder / f"{name}.svg")
    log.info("figures: %s", folder)


if __name__ == "__main__":
    sys.exit(run_command_line(main))
