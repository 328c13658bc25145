"""The paper's tables as rows and cells, before any of them is written down."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from inference_llms.tasks import LIVEBENCH_TASKS, TASKS_OF_ROLE
from scripts.paper_tables.names import DATA_SETS, METHODS, PAPER_ALPHA, ROLES
from scripts.paper_tables.published import published_value, whole_set
from scripts.paper_tables.score import OK, Score
from scripts.paper_tables.summary import Summary, by_line, gain, summarise

TASKS = tuple(DATA_SETS[task][0] for tasks in TASKS_OF_ROLE.values() for task in tasks)
LIVEBENCH = tuple(DATA_SETS[task][0] for task in LIVEBENCH_TASKS)
ATTACKED = tuple(DATA_SETS[task][0] for task in ("sst2", "cola"))
GROUPS = tuple(" & ".join(names) for names in (("LM", "Math"), ("LM", "Code"), ("Math", "Code"), ROLES.values()))
NOTHING = "–"

EXPLANATION = (
    "Per cent, with the 95% interval in brackets. Of several draws the mean, their standard deviation, and the best. "
    "Of an accuracy the interval is Wilson's, over the examples; how far other draws stray sd tells. M3 − without: the "
    "mean over the draws less the merge without M3. Of this, and of a drop rate, the interval is the paired "
    "bootstrap's, over the draws and the examples; where there is one draw, over the examples alone. With few draws it "
    "is still too narrow, and it has no width where nothing was seen to vary."
)
PUBLISHED_VALUES = (
    "The published values are of 13B models over the whole sets; a difference from them is taken only where ours is "
    "over as many examples and by the same metric."
)
AGREEMENT = "AlpacaEval without a judge: the share of answers that agree exactly with the reference."


@dataclass
class Table:
    """`head`: the columns, of which the first `labels` tell what a row is of. A cell is its lines of text. `notes`
    stand below, and a cell refers to one by its number in square brackets; `remarks` are on the whole table."""

    name: str
    title: str
    head: list[str]
    labels: int
    rows: list[tuple[tuple[str, ...], ...]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def note(self, text: str) -> str:
        """The mark of a note, which is added where it is new."""
        if text not in self.notes:
            self.notes.append(text)
        return f"[{self.notes.index(text) + 1}]"

    def add(self, labels: Sequence[str], cells: Iterable[Sequence[str]]) -> None:
        self.rows.append((*((label,) for label in labels), *map(tuple, cells)))


def paper_tables(scores: Sequence[Score]) -> list[Table]:
    """Every table for which there is a result, or the lack of one on record."""
    lines = {line: summarise(of_line) for line, of_line in by_line(scores).items()}
    makers = (performance_table, dare_table, livebench_table, attack_table, alpha_table)
    return [table for table in (make(lines) for make in makers) if table.rows]


Lines = dict[tuple, Summary]


def performance_table(lines: Lines) -> Table:
    """Rows: models and method, without M3, with it, and the difference; columns: the five sets."""
    table = Table("performance", "Merges with M3 and without", ["models", "method", "M3", *TASKS], 3)
    for models, method, variant in _merges(lines, TASKS, dare=False):
        _add_pair(table, lines, (models, method, variant), False, TASKS, [models, _method(method, variant)])
    return _finished(table, lines)


def dare_table(lines: Lines) -> Table:
    """Rows: neither, M3, DARE, both."""
    table = Table("dare", "M3 and DARE", ["models", "method", "DARE", "M3", *TASKS], 4)
    with_dare = {merge[:2] for merge in _merges(lines, TASKS, dare=True)}
    for models, method, variant in _merges(lines, TASKS, dare=False):
        if (models, method) in with_dare and not variant:
            for dare in (False, True):
                labels = [models, _method(method, variant), "yes" if dare else "no"]
                _add_pair(table, lines, (models, method, variant), dare, TASKS, labels)
    return _finished(table, lines)


def livebench_table(lines: Lines) -> Table:
    """Rows: the set, the pair and the method; columns: without M3, with it, and the difference."""
    head = ["data set", "models", "method", "without M3", "M3", "M3 − without"]
    table = Table("ood", "Out of distribution: LiveBench", head, 3)
    for dataset in LIVEBENCH:
        for models, method, variant in _merges(lines, (dataset,), dare=False):
            cells = _across(table, lines, (models, method, variant), dataset, "")
            table.add([dataset, models, _method(method, variant)], cells)
        _add_published(table, dataset, dataset)
    return _finished(table, lines)


def attack_table(lines: Lines) -> Table:
    """Rows: the pair, the set and the attack; columns: the performance drop rate without M3, with it."""
    head = ["models", "method", "data set", "attack", "PDR without M3", "PDR with M3"]
    table = Table("adversarial", "Attacked prompts: performance drop rate (lower is better)", head, 4)
    attacks = list(dict.fromkeys(line[-1] for line in lines if line[-1]))
    for models, method, variant in _merges(lines, ATTACKED, dare=False):
        for dataset in ATTACKED:
            for attack in attacks:
                cells = _across(table, lines, (models, method, variant), dataset, attack)[:2]
                if any(cell != (NOTHING,) for cell in cells):
                    table.add([models, _method(method, variant), dataset, attack], cells)
    if table.rows:
        _add_published(table, "", "not said")
    return _finished(table, lines)


def alpha_table(lines: Lines) -> Table:
    """Rows: merges that were drawn at several α, by α; columns: the sets."""
    table = Table("alpha", "The sweep over α", ["models", "method", "α", *TASKS], 3)
    for models, method, variant in _merges(lines, TASKS, dare=False):
        alphas = alphas_of(lines, models, method, variant)
        if len(alphas) < 2:
            continue
        plain = [lines.get((models, method, variant, False, False, None, dataset, "")) for dataset in TASKS]
        asked = [any(_at(lines, models, method, variant, alpha, dataset) for alpha in alphas) for dataset in TASKS]
        cells = [_cell(table, summary) if wanted else (NOTHING,) for summary, wanted in zip(plain, asked, strict=True)]
        table.add([models, _method(method, variant), "without M3"], cells)
        for alpha in alphas:
            cells = [_cell(table, _at(lines, models, method, variant, alpha, dataset)) for dataset in TASKS]
            table.add([models, _method(method, variant), f"{alpha:g}"], cells)
    return _finished(table, lines)


def alphas_of(lines: Lines, models: str, method: str, variant: str) -> list[float]:
    """The α at which this merge was drawn."""
    merge = (models, method, variant, True, False)
    return sorted({line[5] for line in lines if line[:5] == merge and line[5] is not None})


def _at(lines: Lines, models: str, method: str, variant: str, alpha: float, dataset: str) -> Summary | None:
    return lines.get((models, method, variant, True, False, alpha, dataset, ""))


def _merges(lines: Lines, datasets: Sequence[str], dare: bool) -> list[tuple[str, str, str]]:
    """Models, method and variant of the merges that have a result, or lack one, on these sets; groups and methods in
    the paper's order, single models left out."""
    found = dict.fromkeys(line[:3] for line in lines if line[1] and line[6] in datasets and line[4] == dare)
    methods = list(METHODS.values())

    def order(merge: tuple[str, str, str]) -> tuple:
        models, method, variant = merge
        group = GROUPS.index(models) if models in GROUPS else len(GROUPS)
        return group, models, methods.index(method) if method in methods else len(methods), method, variant

    return sorted(found, key=order)


def _add_pair(
    table: Table, lines: Lines, merge: tuple[str, str, str], dare: bool, datasets: Sequence[str], labels: list[str]
) -> None:
    """The row without M3, that with it, and the difference, of one merge over several sets."""
    plain, drawn = (
        [lines.get((*merge, mixup, dare, PAPER_ALPHA if mixup else None, dataset, "")) for dataset in datasets]
        for mixup in (False, True)
    )
    if any(plain):
        table.add([*labels, "no"], [_cell(table, summary) for summary in plain])
    if any(drawn):
        number = max(summary.draws_asked for summary in drawn if summary)
        table.add([*labels, f"yes, {number} draw{'s' * (number > 1)}"], [_cell(table, summary) for summary in drawn])
    if any(plain) and any(drawn):
        pairs = zip(plain, drawn, strict=True)
        table.add([*labels, "M3 − without"], [_gain_cell(without, with_it) for without, with_it in pairs])


def _across(
    table: Table, lines: Lines, merge: tuple[str, str, str], dataset: str, attack: str
) -> list[tuple[str, ...]]:
    """The cells without M3, with it, and of the difference, of one merge on one set."""
    plain, drawn = (
        lines.get((*merge, mixup, False, PAPER_ALPHA if mixup else None, dataset, attack)) for mixup in (False, True)
    )
    return [_cell(table, plain), _cell(table, drawn), _gain_cell(plain, drawn)]


def _cell(table: Table, summary: Summary | None) -> tuple[str, ...]:
    """Our value with its interval, its spread and best over draws, the published value and the difference."""
    if summary is None:
        return (NOTHING,)
    notes = [*map(_why, summary.lacking), *filter(None, [summary.health_warning])]
    marks = " ".join(dict.fromkeys(map(table.note, notes)))
    first = summary.scores[0]
    told = _published_line(summary, published_value(first.models, first.method, first.mixup, first.dare, first.dataset))
    if summary.value is None:
        return (f"{NOTHING} {marks}", *told)
    lines = [with_interval(summary.value, summary.low, summary.high)]
    if summary.spread is not None:
        lines.append(f"sd {summary.spread:.1f}, best {summary.best:.1f}")
    if summary.draws < summary.draws_asked:
        lines.append(f"{summary.draws} of {summary.draws_asked} draws {marks}")
    elif marks:
        lines.append(marks)
    return (*lines, *told)


def _why(score: Score) -> str:
    return score.note if score.status == "missing" else f"{score.status}: {score.note}"


def _published_line(summary: Summary, published) -> tuple[str, ...]:
    """The published value; the difference where ours is of the same metric over as many examples."""
    scores = [score for score in summary.scores if score.status == OK]
    if published is None or (scores and scores[0].metric != published.metric):
        return ()
    if summary.value is None or summary.examples != whole_set(scores[0].dataset):
        return (f"published {published.value:.1f}",)
    return (f"published {published.value:.1f} ({signed(summary.value - published.value)})",)


def _gain_cell(without: Summary | None, with_mixup: Summary | None) -> tuple[str, ...]:
    found = None if without is None or with_mixup is None else gain(without, with_mixup)
    return (NOTHING,) if found is None else (f"{signed(found.value)} [{signed(found.low)}, {signed(found.high)}]",)


def _add_published(table: Table, dataset: str, shown: str) -> None:
    """Rows of the published values that do not say which method, or set, they are of."""
    for models in GROUPS:
        values = [published_value(models, "", mixup, False, dataset) for mixup in (False, True)]
        if any(values) and table.rows:
            cells = [(NOTHING,) if value is None else (f"{value.value:.1f}",) for value in values]
            labels = [shown, models, "published"] if table.name == "ood" else [models, "published", shown, "not said"]
            table.add(labels, [*cells, *[(NOTHING,)] * (len(table.head) - len(labels) - len(cells))])


def with_interval(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.1f}" if low is None or high is None else f"{value:.1f} [{low:.1f}, {high:.1f}]"


def signed(value: float) -> str:
    """A difference with its sign; nothing but 0 has none."""
    text = f"{value:+.1f}".replace("-", "−")
    return text[1:] if float(text[1:]) == 0 else text


def _method(method: str, variant: str) -> str:
    return f"{method}, {variant}" if variant else method


def _finished(table: Table, lines: Lines) -> Table:
    """With the remarks that are on all of it: what figures mean, which models were merged, how many examples."""
    if not table.rows:
        return table
    sets = {"ood": LIVEBENCH, "adversarial": ATTACKED}.get(table.name, TASKS)
    scores = [score for line, summary in lines.items() if line[6] in sets for score in summary.scores]
    there = [score for score in scores if score.status == OK]
    table.remarks.append(EXPLANATION)
    merged = {group: sorted({score.inputs for score in scores if score.models == group} - {""}) for group in GROUPS}
    names = "; ".join(f"{group}: {' or '.join(inputs)}" for group, inputs in merged.items() if inputs)
    if names:
        table.remarks.append(f"Merged models: {names}.")
    sizes = {name: sorted({score.examples for score in there if score.dataset == name}) for name in sets}
    told = ", ".join(f"{name} {' or '.join(map(str, numbers))}" for name, numbers in sizes.items() if numbers)
    if told:
        table.remarks.append(f"Examples: {told}. {PUBLISHED_VALUES}")
    if any(score.metric == "agreement" for score in there):
        table.remarks.append(AGREEMENT)
    return table
