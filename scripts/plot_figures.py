"""The paper's figures of the scores in a results' folder, as PNG and SVG: python scripts/plot_figures.py RESULTS_DIR"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.paper_tables.collect import collect_scores
from scripts.paper_tables.figures import figures
from utils.command_line import OneLineParser
from utils.errors import run_command_line
from utils.run_log import logged_run

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = OneLineParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("results_dir", type=Path, metavar="RESULTS_DIR")
    results_dir = parser.parse_args(arguments).results_dir
    with logged_run():
        plot_figures(results_dir)


def plot_figures(results_dir: Path) -> None:
    """Write figures/NAME.png and .svg for every figure that there are scores of."""
    folder = results_dir / "figures"
    folder.mkdir(exist_ok=True, parents=True)
    for name, figure in figures(collect_scores(results_dir)).items():
        figure.savefig(folder / f"{name}.png", dpi=150)
        figure.savefig(folder / f"{name}.svg")
    log.info("figures: %s", folder)


if __name__ == "__main__":
    sys.exit(run_command_line(main))
