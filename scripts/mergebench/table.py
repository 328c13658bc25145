"""The tables of MergeBench: Markdown, a page, and JSON with the same numbers."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scripts.mergebench.plan import BASE, BenchSetting
from scripts.mergebench.scores import (
    Interval,
    SetScore,
    SubjectScores,
    compared,
    domain_score,
    forgetting,
    published_scores,
    read_scores,
    relative_score,
)
from scripts.mergebench.suite import BASELINE, GENERAL, Base, Suite, published_values
from scripts.paper_tables.method_scores import LEVEL, holm
from scripts.paper_tables.names import Published
from scripts.paper_tables.scores import share_interval
from scripts.paper_tables.tables import NOTHING, CellLines, Table, html_page, markdown, signed, with_interval
from utils.whole_files import write_json, write_whole

log = logging.getLogger(__name__)

Costs = Mapping[str, Mapping[str, Any] | None]  # by the name of a merge's step: its record
PUBLISHED_ROW = "{} (published)"


@dataclass(frozen=True)
class Row:
    """A row of the table: the base, a merge, the specialists together, or a published merge.

    `domains`: the domains' scores. `relative`: the mean relative to the specialists, over `compared_domains`.
    `difference`: from Task Arithmetic; `p` and `corrected`: its p-value before and after Holm's correction over the
    merges of all bases. `seconds` and `peak_bytes`: of the merge.
    """

    base: str
    subject: str
    title: str
    scores: SubjectScores
    domains: Mapping[str, Interval | None]
    relative: Interval | None = None
    compared_domains: Sequence[str] = ()
    forgetting: Interval | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    difference: Interval | None = None
    p: float | None = None
    corrected: float | None = None

    @property
    def verdict(self) -> str:
        if self.corrected is None or self.corrected > LEVEL:
            return ""
        return "better" if self.difference.value > 0 else "worse"


def write_tables(setting: BenchSetting, costs: Costs) -> None:
    """Write tables/mergebench.md, .html and .json below the results folder, if there is a result."""
    rows = all_rows(setting, costs)
    if not rows:
        log.info("no results yet, so no table")
        return
    folder = setting.results_dir / "tables"
    tables = [summary_table(rows, setting.suite), sets_table(rows, setting.suite)]
    write_whole(folder / "mergebench.md", markdown(tables))
    write_whole(folder / "mergebench.html", html_page("MergeBench", tables, {}))
    write_json(folder / "mergebench.json", {"rows": [row_on_record(row, setting.suite) for row in rows]})
    log.info("tables: %s", folder)


def all_rows(setting: BenchSetting, costs: Costs) -> list[Row]:
    """The rows of every base that has a result; merges by relative score."""
    scores = {base.name: _subjects(base, setting) for base in setting.suite.bases}
    differences = {
        (name, method): found
        for name, of_base in scores.items()
        for method in setting.suite.methods
        if method != BASELINE and BASELINE in setting.suite.methods
        if (found := compared(of_base[method], of_base[BASELINE], setting.suite)) is not None
    }
    corrected = holm({key: p for key, (_, p) in differences.items()})
    rows: list[Row] = []
    for base in setting.suite.bases:
        subjects = scores[base.name]
        if not any(score.value is not None for of_subject in subjects.values() for score in of_subject.values()):
            continue
        rows += _rows_of_base(base, subjects, setting, costs, differences, corrected)
    return rows


def _subjects(base: Base, setting: BenchSetting) -> dict[str, SubjectScores]:
    """The scores of the base, of its specialists and of its merges."""
    suite = setting.suite
    names = (BASE, *suite.domains, *suite.methods)
    return {name: read_scores(setting.folder(base, name), suite.data_sets) for name in names}


def _rows_of_base(
    base: Base,
    subjects: Mapping[str, SubjectScores],
    setting: BenchSetting,
    costs: Costs,
    differences: Mapping[tuple[str, str], tuple[Interval, float]],
    corrected: Mapping[tuple[str, str], float],
) -> list[Row]:
    suite = setting.suite
    specialists = {domain: subjects[domain] for domain in suite.domains}
    own = {one.name: subjects[one.domain][one.name] for one in suite.data_sets if one.domain in specialists}
    own |= {one.name: SetScore(note="not run") for one in suite.sets_of(GENERAL)}

    def row(subject: str, title: str, scores: SubjectScores, **others: Any) -> Row:
        domains = {domain: domain_score(scores, suite.sets_of(domain)) for domain in (*suite.domains, GENERAL)}
        relative, known = relative_score(scores, specialists, suite)
        return Row(base.name, subject, title, scores, domains, relative, known, **others)

    merges = []
    for name, method in suite.methods.items():
        cost = costs.get(f"{base.name}/{name}/merge") or {}
        difference, p = differences.get((base.name, name), (None, None))
        merges.append(
            row(
                name,
                method.title,
                subjects[name],
                forgetting=forgetting(subjects[BASE], subjects[name], suite.sets_of(GENERAL)),
                seconds=cost.get("seconds"),
                peak_bytes=cost.get("peak_bytes"),
                difference=difference,
                p=p,
                corrected=corrected.get((base.name, name)),
            )
        )
    merges.sort(key=lambda one: -1 if one.relative is None else -one.relative.value)
    ours = {method.title for method in suite.methods.values()}
    published = [
        row("published", PUBLISHED_ROW.format(title), published_scores(values, suite))
        for (name, title), values in published_values().items()
        if name == base.name and title not in ours
    ]
    return [row(BASE, "base", subjects[BASE]), row("specialists", "specialists", own), *merges, *published]


def summary_table(rows: Sequence[Row], suite: Suite) -> Table:
    """Rows: base, specialists and merges; columns: the domains, and the three metrics."""
    domains = suite.domains
    is_compared = BASELINE in suite.methods
    head = ["base", "method", *domains, "relative to specialists", "forgetting", "seconds", "peak memory"]
    head += ["minus Task Arithmetic", "p, Holm"] if is_compared else []
    table = Table("mergebench", "MergeBench", head, 2)
    for row in rows:
        cells: list[CellLines] = [_domain_cell(row, domain, suite) for domain in domains]
        cells += [_relative_cell(table, row, domains), _signed_cell(row.forgetting)]
        cells += [(NOTHING if row.seconds is None else f"{row.seconds:.1f}",)]
        cells += [(NOTHING if row.peak_bytes is None else f"{row.peak_bytes / 1e9:.2f} GB",)]
        if is_compared:
            cells += [("baseline",) if row.subject == BASELINE else _signed_cell(row.difference), (_p(row),)]
        table.add([row.base, row.title], cells)
    table.remarks += _remarks(rows, suite)
    return table


def _domain_cell(row: Row, domain: str, suite: Suite) -> CellLines:
    """Our score; below it the published one, if all of the domain's sets have one."""
    published = _published(row)
    values = [published[one.name].value for one in suite.sets_of(domain) if one.name in published]
    line = (f"published {sum(values) / len(values):.1f}",) if len(values) == len(suite.sets_of(domain)) else ()
    return (_per_cent(row.domains[domain]), *line)


def _published(row: Row) -> Mapping[str, Published]:
    return published_values().get((row.base, row.title), {})


def _relative_cell(table: Table, row: Row, domains: Sequence[str]) -> CellLines:
    if row.relative is None:
        return (NOTHING,)
    if row.subject == "specialists":
        return ("100",)
    missing = [domain for domain in domains if domain not in row.compared_domains]
    note = f" {table.note('without ' + ', '.join(missing))}" if missing else ""
    return (f"{_per_cent(row.relative)}{note}",)


def _per_cent(interval: Interval | None) -> str:
    if interval is None:
        return NOTHING
    ends = (interval.low, interval.high)
    return with_interval(100 * interval.value, *(None if end is None else 100 * end for end in ends))


def _signed_cell(interval: Interval | None) -> CellLines:
    if interval is None:
        return (NOTHING,)
    value = signed(100 * interval.value)
    if interval.low is None:
        return (value,)
    return (f"{value} [{signed(100 * interval.low)}, {signed(100 * interval.high)}]",)


def _p(row: Row) -> str:
    if row.corrected is None:
        return NOTHING
    p = f"{row.corrected:.2g}" if row.corrected >= 0.001 else "< 0.001"
    return ", ".join(filter(None, (p, row.verdict)))


def sets_table(rows: Sequence[Row], suite: Suite) -> Table:
    """Rows as in the summary; columns: the data sets."""
    head = ["base", "method", *(one.name for one in suite.data_sets)]
    table = Table("mergebench_sets", "MergeBench: data sets", head, 2)
    for row in rows:
        published = _published(row)
        cells = []
        for one in suite.data_sets:
            line = (f"published {published[one.name].value:.1f}",) if one.name in published else ()
            score = row.scores[one.name]
            line += (f"{score.tokens:.0f} tokens",) if score.tokens else ()
            cells.append((_set_cell(table, score), *line))
        table.add([row.base, row.title], cells)
    metrics = "; ".join(f"{one.name}: {'1 − ' if one.lower_is_better else ''}{one.metric}" for one in suite.data_sets)
    table.remarks.append(f"Per cent, with Wilson's 95% interval where single answers are known. Metrics: {metrics}.")
    table.remarks.append("Tokens: the mean of the generated answers.")
    sizes = {one.name: sorted({row.scores[one.name].examples for row in rows} - {0}) for one in suite.data_sets}
    shown = ", ".join(f"{name} {' or '.join(map(str, numbers))}" for name, numbers in sizes.items() if numbers)
    table.remarks.append(f"Examples: {shown}.")
    sources = dict.fromkeys(one.source for row in rows for one in _published_of_any(row).values())
    if sources:
        table.remarks.append(f"Published values: {'; '.join(sources)}.")
    return table


def _published_of_any(row: Row) -> Mapping[str, Published]:
    """The published values in a row, also in one of published values alone."""
    return published_values().get((row.base, row.title.removesuffix(PUBLISHED_ROW.format(""))), {})


def _set_cell(table: Table, score: SetScore) -> str:
    if score.value is None:
        hidden = score.note in ("", "not run", "not published")
        return NOTHING if hidden else f"{NOTHING} {table.note(score.note)}"
    if not score.values:
        return f"{100 * score.value:.1f}"
    return with_interval(100 * score.value, *share_interval(score.value, score.examples))


def _remarks(rows: Sequence[Row], suite: Suite) -> list[str]:
    options = "; ".join(
        f"{method.title}: {', '.join(f'{name} {value}' for name, value in method.options.items())}"
        for method in suite.methods.values()
    )
    number = sum(row.corrected is not None for row in rows)
    comparison = [
        "Minus Task Arithmetic: the mean difference over the domains' data sets whose single answers are known. p: by "
        f"a paired randomisation test, with Holm's correction over all {number} comparisons; better and worse: at most "
        "0.05. Intervals are not corrected."
    ]
    return [
        "Per cent, with 95% intervals: Wilson's for a domain of one data set, else by the bootstrap over the examples "
        "(paired where two models are compared). A domain's score is the mean over its data sets. Relative to "
        "specialists: the mean over the domains of the score divided by that of the domain's specialist. Forgetting: "
        "the base's score minus the merge's, averaged over "
        f"{', '.join(one.name for one in suite.sets_of(GENERAL))}; negative where the merge is better. Data sets "
        "without single answers keep their scores in the samples.",
        "Seconds and peak memory: of the whole command that merges; resident memory, with the parts of input files "
        "that it maps.",
        *(comparison if BASELINE in suite.methods else []),
        f"Nothing is tuned here. The options are those of MergeBench's scripts/merge.sh: {options}.",
    ]


def row_on_record(row: Row, suite: Suite) -> dict[str, Any]:
    """A row as data; values from 0 to 1."""

    def plain(interval: Interval | None) -> dict[str, float | None] | None:
        return None if interval is None else asdict(interval)

    sets = {
        one.name: {
            "value": row.scores[one.name].value,
            "examples": row.scores[one.name].examples,
            "tokens_per_answer": row.scores[one.name].tokens,
            "metric": one.metric,
            "note": row.scores[one.name].note,
        }
        for one in suite.data_sets
    }
    published = {name: asdict(one) for name, one in _published_of_any(row).items()}
    return {
        "base": row.base,
        "subject": row.subject,
        "title": row.title,
        "domains": {domain: plain(interval) for domain, interval in row.domains.items()},
        "relative": plain(row.relative),
        "compared_domains": list(row.compared_domains),
        "forgetting": plain(row.forgetting),
        "seconds": row.seconds,
        "peak_bytes": row.peak_bytes,
        "minus_task_arithmetic": plain(row.difference),
        "p": row.p,
        "p_holm": row.corrected,
        "verdict": row.verdict,
        "data_sets": sets,
        "published": published,
    }
