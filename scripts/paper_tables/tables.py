"""The paper's tables as rows and cells, rendered as Markdown, LaTeX and HTML."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from inference_llms.prompt_format import PAPER
from inference_llms.tasks import LIVEBENCH_TASKS, TASKS_OF_ROLE
from scripts.paper_tables.names import (
    METHODS,
    PAPER_ALPHA,
    ROLES,
    Published,
    dataset_name,
    published_value,
    whole_set,
)
from scripts.paper_tables.scores import MISSING, OK, Lines, Score, Summary, gain, summaries
from utils.pages import render_page

TASKS = tuple(dataset_name(task) for tasks in TASKS_OF_ROLE.values() for task in tasks)
LIVEBENCH = tuple(map(dataset_name, LIVEBENCH_TASKS))
ATTACKED = tuple(map(dataset_name, ("sst2", "cola")))
GROUPS = tuple(" & ".join(names) for names in (("LM", "Math"), ("LM", "Code"), ("Math", "Code"), ROLES.values()))
NOTHING = "–"
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

EXPLANATION = (
    "Per cent, with the 95% interval in brackets. For several draws: the mean, the standard deviation (sd) and the "
    "best. The interval of an accuracy is Wilson's, over the examples; sd shows how far draws vary. M3 − without: the "
    "mean over the draws minus the merge without M3. Its interval, and that of a drop rate, is the paired bootstrap's, "
    "over the draws and the examples; with one draw, over the examples alone. With few draws it is still too "
    "narrow. Where no variation was seen, it is Wilson's."
)
PUBLISHED_VALUES = (
    "Published values are of 13B models over the whole sets; a difference is given only if ours is over as many "
    "examples, with the paper's prompts and by the same metric."
)
AGREEMENT = "AlpacaEval without a judge: the share of answers that agree exactly with the reference."

Merge = tuple[str, str, str]  # models, method, variant
CellLines = tuple[str, ...]  # the lines of text of a cell


@dataclass
class Table:
    """`head`: the columns, of which the first `labels` name a row. `notes` are printed below; cells refer to their
    numbers in square brackets. `remarks` are about the whole table."""

    name: str
    title: str
    head: list[str]
    labels: int
    rows: list[tuple[CellLines, ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def note(self, text: str) -> str:
        """Add a note if it is new; returns its mark."""
        if text not in self.notes:
            self.notes.append(text)
        return f"[{self.notes.index(text) + 1}]"

    def add(self, labels: Sequence[str], cells: Iterable[Sequence[str]]) -> None:
        self.rows.append((*((label,) for label in labels), *map(tuple, cells)))


def paper_tables(scores: Sequence[Score]) -> list[Table]:
    """Every table for which there is a result, or a recorded cell without one."""
    lines = summaries(scores)
    tables = [make(lines) for make in (performance_table, dare_table, livebench_table, attack_table, alpha_table)]
    for table in tables:
        _add_remarks(table, lines)
    return [table for table in tables if table.rows]


def performance_table(lines: Lines) -> Table:
    """Rows: models and method, without M3, with it, and the difference; columns: the five sets."""
    table = Table("performance", "Merges with M3 and without", ["models", "method", "M3", *TASKS], 3)
    for merge in _merges(lines, TASKS, dare=False):
        _add_pair(table, lines, merge, False, [merge[0], _method(merge)])
    return table


def dare_table(lines: Lines) -> Table:
    """Rows: neither, M3, DARE, both."""
    table = Table("dare", "M3 and DARE", ["models", "method", "DARE", "M3", *TASKS], 4)
    with_dare = {merge[:2] for merge in _merges(lines, TASKS, dare=True)}
    for merge in _merges(lines, TASKS, dare=False):
        if merge[:2] in with_dare and not merge[2]:
            for dare in (False, True):
                _add_pair(table, lines, merge, dare, [merge[0], _method(merge), "yes" if dare else "no"])
    return table


def livebench_table(lines: Lines) -> Table:
    """Rows: the set, the pair and the method; columns: without M3, with it, and the difference."""
    head = ["data set", "models", "method", "without M3", "M3", "M3 − without"]
    table = Table("ood", "Out of distribution: LiveBench", head, 3)
    for dataset in LIVEBENCH:
        for merge in _merges(lines, (dataset,), dare=False):
            table.add([dataset, merge[0], _method(merge)], _across(table, lines, merge, dataset, ""))
        _add_published(table, dataset, dataset)
    return table


def attack_table(lines: Lines) -> Table:
    """Rows: the pair, the set and the attack; columns: the performance drop rate without M3, with it."""
    head = ["models", "method", "data set", "attack", "PDR without M3", "PDR with M3"]
    table = Table("adversarial", "Attacked prompts: performance drop rate (lower is better)", head, 4)
    for merge in _merges(lines, ATTACKED, dare=False):
        for dataset in ATTACKED:
            for attack in attacks_of(lines):
                cells = _across(table, lines, merge, dataset, attack)[:2]
                if any(cell != (NOTHING,) for cell in cells):
                    table.add([merge[0], _method(merge), dataset, attack], cells)
    _add_published(table, "", "not given")
    return table


def alpha_table(lines: Lines) -> Table:
    """Rows: merges that were drawn at several α, by α; columns: the sets."""
    table = Table("alpha", "The sweep over α", ["models", "method", "α", *TASKS], 3)
    for merge in _merges(lines, TASKS, dare=False):
        alphas = alphas_of(lines, merge)
        if len(alphas) < 2:
            continue
        rows = [[lines.get((*merge, True, False, alpha, dataset, "")) for dataset in TASKS] for alpha in alphas]
        plain = [lines.get((*merge, False, False, None, dataset, "")) for dataset in TASKS]
        drawn = [any(of_set) for of_set in zip(*rows, strict=True)]
        plain = [summary if is_drawn else None for summary, is_drawn in zip(plain, drawn, strict=True)]
        for label, row in (("without M3", plain), *((f"{a:g}", row) for a, row in zip(alphas, rows, strict=True))):
            table.add([merge[0], _method(merge), label], [_cell(table, summary) for summary in row])
    return table


def alphas_of(lines: Lines, merge: Merge) -> list[float]:
    """The values of α with which this merge was drawn."""
    return sorted({line[5] for line in lines if line[:5] == (*merge, True, False) and line[5] is not None})


def attacks_of(lines: Lines) -> list[str]:
    return list(dict.fromkeys(line[-1] for line in lines if line[-1]))


def line_of(merge: Merge, mixup: bool, dare: bool, dataset: str, attack: str = "") -> tuple:
    """The line of a merge without M3, or with it at the paper's α."""
    return (*merge, mixup, dare, PAPER_ALPHA if mixup else None, dataset, attack)


def _merges(lines: Lines, datasets: Sequence[str], dare: bool) -> list[Merge]:
    """The merges with a line for these sets; groups and methods in the paper's order, without single models."""
    merges = dict.fromkeys(line[:3] for line in lines if line[1] and line[6] in datasets and line[4] == dare)
    methods = list(METHODS.values())

    def order(merge: Merge) -> tuple:
        models, method, variant = merge
        group = GROUPS.index(models) if models in GROUPS else len(GROUPS)
        return group, models, methods.index(method) if method in methods else len(methods), method, variant

    return sorted(merges, key=order)


def _add_pair(table: Table, lines: Lines, merge: Merge, dare: bool, labels: list[str]) -> None:
    """Add the rows of one merge: without M3, with M3, and the difference."""
    plain, drawn = ([lines.get(line_of(merge, mixup, dare, dataset)) for dataset in TASKS] for mixup in (False, True))
    if any(plain):
        table.add([*labels, "no"], [_cell(table, summary) for summary in plain])
    if any(drawn):
        number = max(summary.expected_draws for summary in drawn if summary)
        table.add([*labels, f"yes, {number} draw{'s' * (number > 1)}"], [_cell(table, summary) for summary in drawn])
    if any(plain) and any(drawn):
        pairs = zip(plain, drawn, strict=True)
        table.add([*labels, "M3 − without"], [_gain_cell(without, with_it) for without, with_it in pairs])


def _across(table: Table, lines: Lines, merge: Merge, dataset: str, attack: str) -> list[CellLines]:
    """One merge on one set: the cells without M3, with M3, and of the difference."""
    plain, drawn = (lines.get(line_of(merge, mixup, False, dataset, attack)) for mixup in (False, True))
    return [_cell(table, plain), _cell(table, drawn), _gain_cell(plain, drawn)]


def _cell(table: Table, summary: Summary | None) -> CellLines:
    """Our value with its interval, the spread and the best over draws, the published value and the difference."""
    if summary is None:
        return (NOTHING,)
    notes = [*map(_why, summary.lacking), *filter(None, [summary.health_warning])]
    marks = " ".join(dict.fromkeys(map(table.note, notes)))
    first = summary.scores[0]
    known = published_value(first.models, first.method, first.mixup, first.dare, first.dataset)
    published = _published_line(summary, known)
    if summary.value is None:
        return (f"{NOTHING} {marks}", *published)
    lines = [with_interval(summary.value, summary.low, summary.high)]
    if summary.spread is not None:
        lines.append(f"sd {summary.spread:.1f}, best {summary.best:.1f}")
    if summary.draws < summary.expected_draws:
        lines.append(f"{summary.draws} of {summary.expected_draws} draws {marks}")
    elif marks:
        lines.append(marks)
    return (*lines, *published)


def _why(score: Score) -> str:
    return score.note if score.status == MISSING else f"{score.status}: {score.note}"


def _published_line(summary: Summary, known: Published | None) -> CellLines:
    """The published value; the difference if ours is by the same metric and prompts over as many examples."""
    if known is None or (summary.metrics and known.metric not in summary.metrics):
        return ()
    first = summary.scores[0]
    if summary.value is None or summary.examples != whole_set(first.dataset) or first.prompts != PAPER:
        return (f"published {known.value:.1f}",)
    return (f"published {known.value:.1f} ({signed(summary.value - known.value)})",)


def _gain_cell(without: Summary | None, with_mixup: Summary | None) -> CellLines:
    found = None if without is None or with_mixup is None else gain(without, with_mixup)
    if found is None:
        return (NOTHING,)
    value, low, high = map(signed, found)
    return (f"{value} [{low}, {high}]",)


def _add_published(table: Table, dataset: str, shown: str) -> None:
    """Add rows of the published values whose method or set is not known."""
    for models in GROUPS:
        values = [published_value(models, "", mixup, False, dataset) for mixup in (False, True)]
        if any(values) and table.rows:
            cells = [(NOTHING,) if value is None else (f"{value.value:.1f}",) for value in values]
            labels = [shown, models, "published"] if table.name == "ood" else [models, "published", shown, shown]
            table.add(labels, [*cells, *[(NOTHING,)] * (len(table.head) - len(labels) - len(cells))])


def with_interval(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.1f}" if low is None or high is None else f"{value:.1f} [{low:.1f}, {high:.1f}]"


def signed(value: float) -> str:
    """A difference with its sign, except 0."""
    text = f"{value:+.1f}".replace("-", "−")
    return text[1:] if float(text[1:]) == 0 else text


def _method(merge: Merge) -> str:
    return ", ".join(filter(None, merge[1:]))


def _add_remarks(table: Table, lines: Lines) -> None:
    """Add how to read the values, which models were merged, and how many examples each set has."""
    sets = {"ood": LIVEBENCH, "adversarial": ATTACKED}.get(table.name, TASKS)
    scores = [score for line, summary in lines.items() if line[6] in sets for score in summary.scores]
    valid = [score for score in scores if score.status == OK]
    table.remarks.append(EXPLANATION)
    merged = {group: sorted({score.inputs for score in scores if score.models == group} - {""}) for group in GROUPS}
    names = "; ".join(f"{group}: {' or '.join(inputs)}" for group, inputs in merged.items() if inputs)
    if names:
        table.remarks.append(f"Merged models: {names}.")
    sizes = {name: sorted({score.examples for score in valid if score.dataset == name}) for name in sets}
    shown = ", ".join(f"{name} {' or '.join(map(str, numbers))}" for name, numbers in sizes.items() if numbers)
    if shown:
        table.remarks.append(f"Examples: {shown}. {PUBLISHED_VALUES}")
    if any(score.metric == "agreement" for score in valid):
        table.remarks.append(AGREEMENT)


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


def _tex_cell(cell: CellLines) -> str:
    lines = [_tex(line) for line in cell]
    # Braces, because LaTeX would take a bracket after \\ for a length.
    return lines[0] if len(lines) == 1 else r"\shortstack{" + r"\\ {}".join(lines) + "}"


def html_page(
    title: str, tables: Sequence[Table], pictures: Mapping[str, str], results: Sequence[Mapping[str, Any]] = ()
) -> str:
    """One page with every table, the `pictures` (their descriptions by path), and a table of all `results` that can be
    sorted and filtered."""
    rows = {table.name: without_repeats(table) for table in tables}
    return render_page(TEMPLATE, title=title, tables=tables, rows=rows, pictures=pictures, results=results)


def without_repeats(table: Table) -> list[list[CellLines]]:
    """The rows; a label is empty if it and all labels before it are those of the row above."""
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
