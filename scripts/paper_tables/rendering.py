"""Tables as Markdown, LaTeX and HTML."""

import html
import re
from collections.abc import Mapping, Sequence

from scripts.paper_tables.tables import Table

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #333; }
tr.first td { border-top: 2px solid #999; }
td .more { color: #595959; font-size: .87em; }
p, ol { max-width: 60rem; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; }
"""
_LATEX = str.maketrans(
    {
        "&": r"\&",
        "%": r"\%",
        "#": r"\#",
        "_": r"\_",
        "$": r"\$",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
        "<": "$<$",
        ">": "$>$",
        "|": "$|$",
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
        lines = [table.head, ["---"] * len(table.head), *rows]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append("\n\n".join([f"## {table.title}", body, _md_notes(table)]))
    return "\n\n".join(parts) + "\n"


def latex(table: Table) -> str:
    """A `table*` environment for \\input; it needs no package."""
    columns = "l" * table.labels + "c" * (len(table.head) - table.labels)
    lines = [
        r"\begin{table*}",
        r"\centering\small",
        f"\\caption{{{_tex(table.title)}. {_tex(' '.join(table.remarks))}}}",
    ]
    lines += [f"\\label{{tab:{table.name}}}", f"\\begin{{tabular}}{{{columns}}}", r"\hline"]
    lines += [" & ".join(map(_tex, table.head)) + r" \\", r"\hline"]
    lines += [" & ".join(_tex_cell(cell) for cell in row) + r" \\" for row in without_repeats(table)]
    lines += [r"\hline", r"\end{tabular}"]
    lines += [f"\\par\\footnotesize [{number}] {_tex(note)}" for number, note in enumerate(table.notes, 1)]
    return "\n".join([*lines, r"\end{table*}"]) + "\n"


def html_page(tables: Sequence[Table], pictures: Mapping[str, str]) -> str:
    """One page with every table, and `pictures`: by their paths from the page, what they show."""
    parts = [f"<h2>{html.escape(table.title)}</h2>\n{_html_table(table)}" for table in tables]
    parts += [
        f'<figure><img src="{html.escape(path)}" alt="{html.escape(shown)}"></figure>'
        for path, shown in pictures.items()
    ]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>Tables</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n<h1>Tables and figures</h1>\n{body}\n</body>\n</html>\n"
    )


def without_repeats(table: Table) -> list[list[tuple[str, ...]]]:
    """The rows, where a label that is the same as in the row above, with all before it, is left empty."""
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


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.head)
    lines = [f"<table>\n<tr>{head}</tr>"]
    for row in without_repeats(table):
        first = ' class="first"' if row[0] != ("",) else ""
        lines.append(f"<tr{first}>{''.join(map(_html_cell, row))}</tr>")
    lines.append("</table>")
    if table.notes:
        lines.append("<ol>" + "".join(f"<li>{html.escape(note)}</li>" for note in table.notes) + "</ol>")
    lines += [f"<p>{html.escape(remark)}</p>" for remark in table.remarks]
    return "\n".join(lines)


def _html_cell(cell: Sequence[str]) -> str:
    first, *more = map(html.escape, cell)
    return f"<td>{first}{''.join(f'<br><span class=more>{line}</span>' for line in more)}</td>"


def _md(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _md_notes(table: Table) -> str:
    notes = "\n".join(f"{number}. {_md(note)}" for number, note in enumerate(table.notes, 1))
    return "\n\n".join(part for part in (notes, *table.remarks) if part)


def _tex(text: str) -> str:
    return re.sub(r"\s+", " ", text.translate(_LATEX))


def _tex_cell(cell: Sequence[str]) -> str:
    lines = [_tex(line) for line in cell]
    # Braces, for a bracket behind \\ would be taken for a length.
    return lines[0] if len(lines) == 1 else r"\shortstack{" + r"\\ {}".join(lines) + "}"
