"""Render tables as Markdown, LaTeX and HTML."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from scripts.paper_tables.tables import Lined, Table
from utils.pages import render_page

TEMPLATE = Path(__file__).with_name("tables.html.j2")
_LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%#_${}"},
        **{sign: f"${sign}$" for sign in "<>|"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
        "α": r"$\alpha$",
        "λ": r"$\lambda$",
        "−": "$-$",
        "–": "--",
    }
)


def markdown(tables: Sequence[Table]) -> str:
    parts = []
    for table in tables:
        rows = [[_md("<br>".join(cell)) for cell in row] for row in without_repeats(table)]
        notes = [f"{number}. {_md(note)}" for number, note in enumerate(table.notes, 1)]
        body = tabulate(rows, table.head, tablefmt="pipe", disable_numparse=True)
        parts += [f"## {table.title}", body, "\n".join(notes), *table.remarks]
    return "\n\n".join(filter(None, parts)) + "\n"


def _md(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def latex(table: Table) -> str:
    """A `table*` environment for \\input; it needs no package."""
    rows = [[_tex_cell(cell) for cell in row] for row in without_repeats(table)]
    align = ["left"] * table.labels + ["center"] * (len(table.head) - table.labels)
    head = list(map(_tex, table.head))
    lines = [
        r"\begin{table*}",
        r"\centering\small",
        f"\\caption{{{_tex(table.title)}. {_tex(' '.join(table.remarks))}}}",
        f"\\label{{tab:{table.name}}}",
        tabulate(rows, head, tablefmt="latex_raw", disable_numparse=True, colalign=align),
    ]
    lines += [f"\\par\\footnotesize [{number}] {_tex(note)}" for number, note in enumerate(table.notes, 1)]
    return "\n".join([*lines, r"\end{table*}"]) + "\n"


def _tex(text: str) -> str:
    return re.sub(r"\s+", " ", text.translate(_LATEX))


def _tex_cell(cell: Lined) -> str:
    lines = [_tex(line) for line in cell]
    # Braces, because LaTeX would take a bracket after \\ for a length.
    return lines[0] if len(lines) == 1 else r"\shortstack{" + r"\\ {}".join(lines) + "}"


def html_page(tables: Sequence[Table], pictures: Mapping[str, str]) -> str:
    """One page with every table and the `pictures`: descriptions by path from the page."""
    rows = {table.name: without_repeats(table) for table in tables}
    return render_page(TEMPLATE, title="Tables and figures", tables=tables, rows=rows, pictures=pictures)


def without_repeats(table: Table) -> list[list[Lined]]:
    """The rows, where a label is left empty if it and all labels before it are the same as in the row above."""
    rows, above = [], None
    for row in table.rows:
        shown = list(row)
        for column in range(table.labels - 1):
            if above is None or above[: column + 1] != row[: column + 1]:
                break
            shown[column] = ("",)
        rows.append(shown)
        above = row
    return rows
