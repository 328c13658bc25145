"""The paper's figures: with and without M3, robustness, M3 and DARE, and the sweep over α.

Okabe and Ito's colours, which the colour-blind can tell apart, with hatches and marks that can be told apart in print.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

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


@dataclass(frozen=True)
class Bars:
    """Bars that stand together: their label, and for each kind of bar its summary and the published value."""

    label: str
    summaries: dict[str, Summary | None]
    published: dict[str, float]


def performance_figure(lines: Lines) -> Figure | None:
    """A panel for each group of models; bars of each method on each set, without M3 and with it."""
    panels = {
        models: [
            bars
            for dataset in TASKS
            for method in METHODS.values()
            if (bars := _bars(lines, models, method, dataset, label=_stacked(dataset, method)))
        ]
        for models in GROUPS
    }
    panels = {models: bars for models, bars in panels.items() if bars}
    if not panels:
        return None
    figure = Figure(figsize=(11, 3 * len(panels) + 0.6), layout="constrained")
    places = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, (models, bars) in zip(places, panels.items(), strict=True):
        _draw_bars(axes, bars, (WITHOUT, WITH))
        axes.set_ylim(0, 105)
        axes.set_ylabel("score (%)")
        axes.set_title(models, loc="left")
    _add_legend(figure, places)
    return figure


def robustness_figure(lines: Lines) -> Figure | None:
    """Above: LiveBench, each set with its pair. Below: performance drop rates under attack."""
    of_livebench = [
        bars
        for dataset in LIVEBENCH
        for models in GROUPS
        for method in METHODS.values()
        if (bars := _bars(lines, models, method, dataset, label=f"{dataset}\n{models}, {method}"))
    ]
    of_attacks = [
        bars
        for models in GROUPS
        for method in METHODS.values()
        for dataset in ATTACKED
        for attack in dict.fromkeys(line[-1] for line in lines if line[-1])
        if (
            bars := _bars(
                lines, models, method, dataset, attack, label="\n".join([dataset, attack, models.replace("& ", "&\n")])
            )
        )
    ]
    panels = {
        "Out of distribution: higher is better": ("score (%)", of_livebench),
        "Attacked prompts: lower is better": ("performance drop rate (%)", of_attacks),
    }
    panels = {title: panel for title, panel in panels.items() if panel[1]}
    if not panels:
        return None
    figure = Figure(figsize=(14, 4 * len(panels)), layout="constrained")
    places = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, (title, (told, bars)) in zip(places, panels.items(), strict=True):
        _draw_bars(axes, bars, (WITHOUT, WITH))
        axes.set_ylabel(told)
        axes.set_title(title, loc="left")
    _add_legend(figure, places)
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
                if known is not None and known.metric in _metrics(summary for _, summary in drawn):
                    look = {"color": "white", "markeredgecolor": COLOURS[number], "markersize": 12}
                    axes.plot(place, known.value, "*", **look)
        axes.set_xticks(range(len(steps)), [name for _, _, name in steps])
        axes.set_title(f"{models}, {method}", loc="left")
        axes.grid(axis="y", alpha=0.3)
        axes.set_ylim(-4, 105)
    panels[0].set_ylabel("score (%), mean and each draw")
    handles, names = panels[0].get_legend_handles_labels()
    star = Line2D([], [], linestyle="", marker="*", color="white", markeredgecolor="black", markersize=12)
    figure.legend([*handles, star], [*names, PUBLISHED], loc="outside lower center", ncols=6, frameon=False)
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


def _bars(lines: Lines, models: str, method: str, dataset: str, attack: str = "", *, label: str) -> Bars | None:
    """The bars without M3 and with it; None where neither was asked for."""
    summaries = {
        name: _line(lines, models, method, mixup, False, dataset, attack)
        for name, mixup in ((WITHOUT, False), (WITH, True))
    }
    if not any(summaries.values()):
        return None
    published = {}
    for name, mixup in ((WITHOUT, False), (WITH, True)):
        # LiveBench's published bars do not say their method.
        known = published_value(models, "" if dataset in LIVEBENCH else method, mixup, False, dataset)
        ours = _metrics([summaries[name]])
        if known is not None and (not ours or known.metric in ours or dataset in LIVEBENCH):
            published[name] = known.value
    return Bars(label, summaries, published)


def _stacked(dataset: str, method: str) -> str:
    return "\n".join([dataset, *method.split()])


def _line(
    lines: Lines, models: str, method: str, mixup: bool, dare: bool, dataset: str, attack: str = ""
) -> Summary | None:
    return lines.get((models, method, "", mixup, dare, PAPER_ALPHA if mixup else None, dataset, attack))


def _draw_bars(axes, bars: Sequence[Bars], names: Sequence[str]) -> None:
    """Bars with their 95% intervals; each draw as a point; published values as stars; a cross where there is none."""
    width = 0.8 / len(names)
    for place, of_place in enumerate(bars):
        for number, name in enumerate(names):
            middle = place + (number - (len(names) - 1) / 2) * width
            summary = of_place.summaries.get(name)
            if summary is None or summary.value is None:
                axes.plot(middle, 0, marker="x", color="black", markersize=5, clip_on=False, zorder=5)
            else:
                _draw_bar(axes, middle, width, summary, name)
            known = of_place.published.get(name)
            if known is not None:
                axes.plot(middle, known, "*", color="white", markeredgecolor="black", markersize=11, label=PUBLISHED)
    axes.set_xticks(range(len(bars)), [of_place.label for of_place in bars], fontsize=8)
    axes.margins(x=0.01)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _draw_bar(axes, middle: float, width: float, summary: Summary, name: str) -> None:
    axes.bar(middle, summary.value, width, edgecolor="black", linewidth=0.6, label=name, **STYLES[name])
    if summary.low is not None:
        span = [[max(summary.value - summary.low, 0)], [max(summary.high - summary.value, 0)]]
        axes.errorbar(middle, summary.value, span, color="black", linewidth=1, capsize=2)
    values = [score.value for score in summary.scores if score.status == OK]
    if len(values) > 1:
        look = {"marker": "o", "markersize": 3, "markerfacecolor": "white", "markeredgecolor": "black"}
        axes.plot([middle] * len(values), values, linestyle="", label="a draw", **look)


def _draw_trend(axes, drawn: Sequence[tuple[float, Summary]], label: str, number: int) -> None:
    """A line through the means, with every draw as a pale point."""
    look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKS[number % len(MARKS)]}
    axes.plot([place for place, _ in drawn], [summary.value for _, summary in drawn], label=label, **look)
    for place, summary in drawn:
        values = [score.value for score in summary.scores if score.status == OK]
        axes.plot([place] * len(values), values, linestyle="", markersize=4, alpha=0.45, **look)


def _metrics(summaries: Iterable[Summary | None]) -> set[str]:
    return {score.metric for summary in summaries if summary for score in summary.scores if score.status == OK}


def _add_legend(figure: Figure, panels) -> None:
    """One legend for all panels, and what stands for what."""
    handles = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    order = [name for name in (WITHOUT, WITH, "a draw", PUBLISHED) if name in handles]
    figure.legend([handles[name] for name in order], order, loc="outside upper right", ncols=4, frameon=False)
    figure.supxlabel("bars: value, or mean of the draws, with 95% interval; ×: no result", fontsize=8)
