"""The report of a search as one HTML page that needs no other file."""

import re
from collections.abc import Mapping, Sequence
from html import escape

from scripts.mixup_search.choice import RULE
from scripts.mixup_search.findings import Findings
from scripts.mixup_search.save_command import save_command
from scripts.mixup_search.tables import CHOSEN_MARK, FAULT_MARK, candidate_table, test_table, verdict

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #111; background: #fff; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.25rem 0.8rem; text-align: left; border-bottom: 1px solid #ddd; white-space: nowrap; }
tr.chosen td { background: #fff6c8; font-weight: 600; }
pre { background: #f4f4f4; padding: 0.8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; } figcaption { color: #444; }
.missing { border-left: 4px solid #D55E00; padding-left: 1rem; }
@media print { body { margin: 0; } figure, table { break-inside: avoid; } }
"""
_TITLES = {
    "scores": "Score against the ratio",
    "pareto_front": "What one task costs the other",
    "distribution": "How much a draw matters",
}
_CAPTIONS = {
    "scores": "Scores on the validation part. Intervals are Wilson's, of 95%.",
    "pareto_front": "Scores on the validation part. No draw is better in one task than one on the line without being "
    "worse in the other.",
    "distribution": "Draws by their scores on the validation part, and by the mean of their gains over the fine-tunes.",
}


def page(findings: Findings, pictures: Mapping[str, str]) -> str:
    """The page. `pictures`: SVG files by name, put in at their headings."""
    identity = findings.identity
    heading = f"Search for M3's ratio: {' + '.join(findings.roles)}"
    parts = [f"<h1>{escape(heading)}</h1>", _paragraph(_summary(findings))]
    missing = findings.missing()
    if missing:
        parts.append(f'<div class="missing"><p>Still missing:</p>{_list(missing)}</div>')
    parts += ["<h2>The choice</h2>", _paragraph(RULE), _paragraph(f"Split: {identity['split']}")]
    if findings.chosen is not None:
        parts += _test_parts(findings)
        parts.append(_paragraph(f"This command saves the merge of {findings.chosen.name}:"))
        parts.append(f"<pre>{escape(save_command(identity, findings.chosen.parameters))}</pre>")
    for name, svg in pictures.items():
        parts.append(f"<h2>{_TITLES[name]}</h2>")
        parts.append(f"<figure>{_inline(svg, name)}<figcaption>{_CAPTIONS[name]}</figcaption></figure>")
    numbers = ", ".join(f"{number} of {task}" for task, number in findings.numbers.items())
    parts.append("<h2>All candidates on the validation part</h2>")
    if numbers:
        parts.append(
            _paragraph(f"Scores with 95% intervals, over these examples where no other number stands: {numbers}.")
        )
    parts.append(_table(candidate_table(findings)))
    if faults := findings.fault_lines():
        parts.append(f'<div class="missing"><p>{FAULT_MARK} Check the completions:</p>{_list(faults)}</div>')
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(heading)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def _summary(findings: Findings) -> str:
    identity = findings.identity
    parameters = (findings.draws or findings.references)[0].parameters
    method = parameters.method if parameters.mask is None else f"{parameters.method} of masked models"
    return (
        f"{len(findings.draws)} of {identity['num_draws']} draws by {identity['draw_by']}, seed {identity['seed']}; "
        f"{method}; tasks {', '.join(findings.tasks)}; {identity['backend']}."
    )


def _test_parts(findings: Findings) -> list[str]:
    table, told = test_table(findings), verdict(findings)
    if len(table) == 1:
        return []
    return [
        _paragraph("On the test part, with 95% intervals; of the difference, by paired bootstrap:"),
        _table(table),
    ] + ([] if told is None else [_paragraph(told)])


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _table(rows: Sequence[Sequence[str]]) -> str:
    header = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = []
    for row in rows[1:]:
        kind = ' class="chosen"' if row[0] == CHOSEN_MARK else ""
        body.append(f"<tr{kind}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    return f'<div class="wide"><table>\n<tr>{header}</tr>\n' + "\n".join(body) + "\n</table></div>"


def _inline(svg: str, name: str) -> str:
    """The svg element alone, its ids made this picture's own, for a page must not have an id twice."""
    element = svg[svg.index("<svg") :]
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", element)
