"""The paper's figures: with and without M3, robustness, M3 and DARE, and the sweep over α.

Okabe and Ito's colours, which the colour-blind can tell apart, with hatches and marks that can be told apart in print.
"""

from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from scripts.paper_tables.names import METHODS, PAPER_ALPHA
from scripts.paper_tables.published import published_value
from scripts.paper_tables.score import OK, Score
from scripts.paper_tables.summary import Summary, by_line, summarise
from scripts.paper_tables.tables import ATTACKED, GROUPS, LIVEBENCH, TASKS, alphas_of

WITHOUT, WITH, DARE, BOTH = "without M3", "with M3", "DARE", "DARE and M3"
STYLES = {
    WITHOUT: {"color": "#56B4E9", "hatch": ""},
    WITH: {"color": "#E69F00", "hatch": "///"},
    DARE: {"color": "#009E73", "hatch": "..."},
    BOTH: {"color": "#CC79A7", "hatch": "xxx"},
}
MARKS = ("o", "s", "^", "D", "v")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")
Lines = dict[tuple, Summary]
PUBLISHED = "published (13B)"


def figures(scores: Sequence[Score]) -> dict[str, Figure]:
    """The figures that there is something to draw of, by name."""
    lines = {line: summarise(of_line) for line, of_line in by_line(scores).items()}
    makers: dict[str, Callable[[Lines], Figure | None]] = {
        "performance": performance_figure,
        "robustness": robustness_figure,
        "dare": dare_figure,
        "alpha": alpha_figure,
    }
    drawn = {name: make(lines) for name, make in makers.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def performance_figure(lines: Lines) -> Figure | None:
    """A panel for each group of models; bars of each method on each set, without M3 and with it."""
    groups = [group for group in GROUPS if any(line[0] == group and line[6] in TASKS for line in lines)]
    if not groups:
        return None
    figure = Figure(figsize=(11, 2.9 * len(groups) + 0.6), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    for axes, models in zip(panels, groups, strict=True):
        bars = [
            (f"{dataset}\n{method}", _pair(lines, models, method, dataset))
            for dataset in TASKS
            for method in METHODS.values()
            if any(_pair(lines, models, method, dataset).values())
        ]
        _draw_bars(axes, bars, (WITHOUT, WITH))
        axes.set_ylim(0, 105)
        axes.set_title(models, loc="left")
    _finish(figure, panels[0], "score (%)", panels)
    return figure


def robustness_figure(lines: Lines) -> Figure | None:
    """Left: LiveBench, each set with its pair. Right: performance drop rates under attack."""
    of_livebench = [
        (f"{dataset.removeprefix('LiveBench-')}\n{models}\n{method}", _pair(lines, models, method, dataset))
        for dataset in LIVEBENCH
        for models in GROUPS
        for method in METHODS.values()
        if any(_pair(lines, models, method, dataset).values())
    ]
    attacks = list(dict.fromkeys(line[-1] for line in lines if line[-1]))
    of_attacks = [
        (f"{models}\n{dataset}\n{attack}", _pair(lines, models, method, dataset, attack))
        for models in GROUPS
        for method in METHODS.values()
        for dataset in ATTACKED
        for attack in attacks
        if any(
            summary and summary.value is not None for summary in _pair(lines, models, method, dataset, attack).values()
        )
    ]
    kinds = [(bars, told) for bars, told in ((of_livebench, "LiveBench (%)"), (of_attacks, "PDR (%)")) if bars]
    if not kinds:
        return None
    figure = Figure(figsize=(11, 4.2 * len(kinds)), layout="constrained")
    panels = figure.subplots(len(kinds), 1, squeeze=False)[:, 0]
    for axes, (bars, told) in zip(panels, kinds, strict=True):
        _draw_bars(axes, bars, (WITHOUT, WITH))
        axes.set_ylabel(told)
        higher = "higher is better" if bars is of_livebench else "performance drop rate, lower is better"
        axes.set_title(("Out of distribution: " if bars is of_livebench else "Attacked prompts: ") + higher, loc="left")
    _finish(figure, panels[0], None, panels)
    return figure


def dare_figure(lines: Lines) -> Figure | None:
    """A panel for each method; for each set a line from neither over M3 and DARE to both."""
    steps = ((False, False, "neither"), (True, False, "M3"), (False, True, "DARE"), (True, True, "both"))
    merges = [
        (models, method)
        for models in GROUPS
        for method in METHODS.values()
        if any(line[:2] == (models, method) and line[4] for line in lines)
    ]
    if not merges:
        return None
    figure = Figure(figsize=(3.7 * len(merges), 3.8), layout="constrained")
    panels = figure.subplots(1, len(merges), squeeze=False, sharey=True)[0]
    for axes, (models, method) in zip(panels, merges, strict=True):
        for number, dataset in enumerate(TASKS):
            drawn = [
                (place, summary)
                for place, (mixup, dare, _) in enumerate(steps)
                if (summary := _line(lines, models, method, mixup, dare, dataset)) and summary.value is not None
            ]
            if drawn:
                _draw_trend(axes, drawn, dataset, number)
            for place, (mixup, dare, _) in enumerate(steps):
                known = published_value(models, method, mixup, dare, dataset)
                if known is not None and known.metric in _metrics(drawn):
                    axes.plot(place, known.value, "*", color=COLOURS[number], markersize=11, markeredgecolor="black")
        axes.set_xticks(range(len(steps)), [name for _, _, name in steps])
        axes.set_title(f"{models}, {method}", loc="left")
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("score (%), mean and range of draws")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(TASKS), frameon=False)
    return figure


def alpha_figure(lines: Lines) -> Figure | None:
    """A panel for each merge that was drawn at several α: the mean of each set over α, every draw as a point."""
    merges = [
        (models, method, alphas)
        for models in GROUPS
        for method in METHODS.values()
        if len(alphas := alphas_of(lines, models, method, "")) > 1
    ]
    if not merges:
        return None
    figure = Figure(figsize=(6.4 * len(merges), 4.2), layout="constrained")
    panels = figure.subplots(1, len(merges), squeeze=False)[0]
    for axes, (models, method, alphas) in zip(panels, merges, strict=True):
        for number, dataset in enumerate(TASKS):
            drawn = [
                (alpha, summary)
                for alpha in alphas
                if (summary := lines.get((models, method, "", True, False, alpha, dataset, "")))
                and summary.value is not None
            ]
            if len(drawn) < 2:
                continue
            _draw_trend(axes, drawn, dataset, number)
            plain = _line(lines, models, method, False, False, dataset)
            if plain is not None and plain.value is not None:
                axes.axhline(plain.value, color=COLOURS[number], linestyle=":", linewidth=1.2)
        axes.set_xscale("log")
        axes.set_xticks(alphas, [f"{alpha:g}" for alpha in alphas])
        axes.minorticks_off()
        axes.set_xlabel("α of λ ~ Beta(α, α)")
        axes.set_title(f"{models}, {method}", loc="left")
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylabel("score (%), mean and each draw;\ndotted: without M3")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(TASKS), frameon=False)
    return figure


def _pair(lines: Lines, models: str, method: str, dataset: str, attack: str = "") -> dict[str, Summary | None]:
    return {
        name: _line(lines, models, method, mixup, False, dataset, attack)
        for name, mixup in ((WITHOUT, False), (WITH, True))
    }


def _line(
    lines: Lines, models: str, method: str, mixup: bool, dare: bool, dataset: str, attack: str = ""
) -> Summary | None:
    return lines.get((models, method, "", mixup, dare, PAPER_ALPHA if mixup else None, dataset, attack))


def _draw_bars(axes, bars: Sequence[tuple[str, dict[str, Summary | None]]], names: Sequence[str]) -> None:
    """Bars with their 95% intervals; each draw as a point; published values as stars; a cross where there is none."""
    width = 0.8 / len(names)
    for place, (_, summaries) in enumerate(bars):
        for number, name in enumerate(names):
            middle = place + (number - (len(names) - 1) / 2) * width
            summary = summaries.get(name)
            if summary is None or summary.value is None:
                axes.plot(middle, 0, marker="x", color="black", markersize=5, clip_on=False, zorder=5)
                continue
            axes.bar(middle, summary.value, width, edgecolor="black", linewidth=0.6, label=name, **STYLES[name])
            if summary.low is not None:
                span = [[max(summary.value - summary.low, 0)], [max(summary.high - summary.value, 0)]]
                axes.errorbar(middle, summary.value, span, color="black", linewidth=1, capsize=2)
            there = [score for score in summary.scores if score.status == OK]
            if len(there) > 1:
                spots = {"marker": "o", "markersize": 3, "markerfacecolor": "white", "markeredgecolor": "black"}
                axes.plot(
                    [middle] * len(there), [score.value for score in there], linestyle="", label="a draw", **spots
                )
            first = there[0]
            known = published_value(first.models, first.method, first.mixup, first.dare, first.dataset)
            if known is not None and known.metric == first.metric:
                axes.plot(
                    middle, known.value, "*", color="white", markeredgecolor="black", markersize=11, label=PUBLISHED
                )
    axes.set_xticks(range(len(bars)), [name for name, _ in bars], fontsize=8)
    axes.margins(x=0.01)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _draw_trend(axes, drawn: Sequence[tuple[float, Summary]], label: str, number: int) -> None:
    """A line through the means, with every draw as a pale point."""
    look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKS[number % len(MARKS)]}
    axes.plot([place for place, _ in drawn], [summary.value for _, summary in drawn], label=label, **look)
    for place, summary in drawn:
        values = [score.value for score in summary.scores if score.status == OK]
        axes.plot([place] * len(values), values, linestyle="", markersize=4, alpha=0.45, **look)


def _metrics(drawn: Sequence[tuple[float, Summary]]) -> set[str]:
    return {score.metric for _, summary in drawn for score in summary.scores if score.status == OK}


def _finish(figure: Figure, axes, ylabel: str | None, panels) -> None:
    """One legend for all panels, and what a cross means."""
    handles = {}
    for panel in panels:
        if ylabel:
            panel.set_ylabel(ylabel)
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside upper right", ncols=len(handles) or 1, frameon=False)
    figure.supxlabel("bars: value, or mean of the draws, with 95% interval; ×: no result", fontsize=8)
