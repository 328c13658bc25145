"""What a search found, for the screen and as a page with pictures."""

from collections.abc import Sequence
from pathlib import Path

from scripts.mixup_search.figures import draw_figures, save_figure
from scripts.mixup_search.findings import Findings, find_out
from scripts.mixup_search.page import page
from scripts.mixup_search.save_command import save_command
from scripts.mixup_search.store import SearchStore
from scripts.mixup_search.tables import CHOSEN_MARK, FAULT_MARK, candidate_table, test_table, verdict
from utils.whole_files import write_whole

REPORT = "report.html"


def report_lines(store: SearchStore) -> list[str]:
    """The tables, the choice and what is missing, a line each. Raises UserError where the file holds no results."""
    findings = find_out(store)
    numbers = ", ".join(f"{number} of {task}" for task, number in findings.numbers.items())
    lines = ["validation part, by " + (f"examples: {numbers}" if numbers else "what has been answered so far")]
    lines += _aligned(candidate_table(findings))
    lines += [f"{FAULT_MARK} check the completions: {line}" for line in findings.fault_lines()]
    if findings.chosen is not None:
        lines += ["", f"{CHOSEN_MARK} chosen: the largest mean gain over the fine-tunes on the validation part"]
        lines += _test_lines(findings)
        lines += ["", f"save the merge of {findings.chosen.name} with"]
        lines.append(f"  {save_command(findings.identity, findings.chosen.parameters)}")
    missing = findings.missing()
    if missing:
        lines += ["", "still missing:", *(f"  {line}" for line in missing)]
    return lines


def write_report(store: SearchStore, folder: Path) -> Path:
    """Write the pictures, as PNG and SVG, and a page that holds all into `folder`, over those of an earlier report;
    gives the page's path. Raises UserError where the file holds no results."""
    findings = find_out(store)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        name: save_figure(figure, folder, name).read_text(encoding="utf-8")
        for name, figure in draw_figures(findings).items()
    }
    write_whole(folder / REPORT, page(findings, pictures))
    return folder / REPORT


def _test_lines(findings: Findings) -> list[str]:
    table = test_table(findings)
    if len(table) == 1:
        return []
    told = verdict(findings)
    return ["", "test part", *_aligned(table), *([] if told is None else [told])]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
