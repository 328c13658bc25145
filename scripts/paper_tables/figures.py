"""The paper's figures: with M3 and without, robustness, M3 and DARE, and the sweep over α.

Colour is never the only difference, so that they work in print and for colour-blind readers: hatches, marks and dashes
differ too. Marks of one bar are side by side: draws, interval, published value.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scripts.paper_tables.names import METHODS, published_value
from scripts.paper_tables.scores import Lines, Score, Summary, summaries
from scripts.paper_tables.tables import ATTACKED, GROUPS, LIVEBENCH, TASKS, alphas_of, attacks_of, line_of
from utils.palette import ORANGE, SERIES, SKY_BLUE

WITHOUT, WITH = "without M3", "with M3"
KINDS = {WITHOUT: False, WITH: True}
PUBLISHED = "published (13B)"
BARS = {WITHOUT: {"color": SKY_BLUE}, WITH: {"color": ORANGE, "hatch": "///"}}
STARS = {
    WITHOUT: {"color": "white", "markeredgecolor": "black", "markersize": 11},
    WITH: {"color": "black", "markeredgecolor": "white", "markersize": 14},
}
A_DRAW = {"marker": "o", "markersize": 3, "markerfacecolor": "white", "markeredgecolor": "black", "linestyle": ""}
NO_RESULT = {"marker": "x", "color": "black", "markersize": 5, "linestyle": ""}
LEGEND_ORDER = (WITHOUT, WITH, "a draw", *(f"{PUBLISHED}, {name}" for name in STARS), "no result")
BAR_WIDTH, GAP = 0.4, 0.5  # the gap between groups of bars; both in units of the axis
# Of different lengths, so that more data sets than marks still look different.
MARKS = ("o", "s", "^", "D", "v", "P")
DASHES = ("solid", (0, (6, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))
CAPTION = "Bars: the value, or the mean of the draws, with its 95% interval."
TREND_LABEL = "score (%), mean and (pale) each draw"


@dataclass(frozen=True)
class Bars:
    """A pair of bars, without M3 and with it, with its label and that of its group. Summaries and published values are
    by kind."""

    label: str
    group: str
    summaries: Mapping[str, Summary]
    published: Mapping[str, float]


def figures(scores: Sequence[Score]) -> dict[str, Figure]:
    """Every figure for which there are scores, by name."""
    lines = summaries(scores)
    drawn = {name: draw(lines) for name, (draw, _) in FIGURES.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def performance_figure(lines: Lines) -> Figure | None:
    """A panel for each group of models; bars of each method on each set, without M3 and with it."""
    panels = {}
    for models in GROUPS:
        merges = [(dataset, method) for dataset in TASKS for method in METHODS.values()]
        bars = [_bars(lines, models, m, dataset, label=m.replace(" ", "\n"), group=dataset) for dataset, m in merges]
        panels[models] = ("score (%)", bars)
    return _bar_figure(panels, 9)


def robustness_figure(lines: Lines) -> Figure | None:
    """LiveBench, each set with its pair; and for each pair a panel of performance drop rates under attack."""
    bars = [
        _bars(lines, models, method, dataset, label=f"{models}\n{method}", group=dataset)
        for dataset in LIVEBENCH
        for models in GROUPS
        for method in METHODS.values()
    ]
    panels = {"Out of distribution, LiveBench: higher is better": ("score (%)", bars)}
    for models in GROUPS:
        bars = [
            _bars(lines, models, method, dataset, attack, label=attack, group=f"{dataset}, {method}")
            for method in METHODS.values()
            for dataset in ATTACKED
            for attack in attacks_of(lines)
        ]
        # The published drop rates name no method, set and attack.
        published = {kind: published_value(models, "", mixup, False, "") for kind, mixup in KINDS.items()}
        known = {kind: value.value for kind, value in published.items() if value is not None}
        if any(bars) and known:
            bars.append(Bars("published", "set, attack\nnot given", {}, known))
        panels[f"Attacked prompts, {models}: lower is better"] = ("performance\ndrop rate (%)", bars)
    return _bar_figure(panels, 7)


def _bars(
    lines: Lines, models: str, method: str, dataset: str, attack: str = "", *, label: str, group: str
) -> Bars | None:
    """The pair of bars of a merge; None if it has no scores."""
    places = {kind: line_of((models, method, ""), mixup, False, dataset, attack) for kind, mixup in KINDS.items()}
    found = {kind: lines[line] for kind, line in places.items() if line in lines}
    if not found:
        return None
    published = {}
    for kind, mixup in KINDS.items():
        # LiveBench's published values name no method.
        known = published_value(models, "" if dataset in LIVEBENCH else method, mixup, False, dataset)
        ours = found[kind].metrics if kind in found else set()
        if known is not None and (not ours or known.metric in ours or dataset in LIVEBENCH):
            published[kind] = known.value
    return Bars(label, group, found, published)


def _bar_figure(panels: Mapping[str, tuple[str, Sequence[Bars | None]]], least_width: float) -> Figure | None:
    """The panels that have bars, in one column. `panels`: the label of the axis and the bars, by title."""
    panels = {title: (label, list(filter(None, bars))) for title, (label, bars) in panels.items() if any(bars)}
    if not panels:
        return None
    figure = Figure(figsize=(11, 2.8 * len(panels) + 0.8), layout="constrained")
    places = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, (title, (label, bars)) in zip(places, panels.items(), strict=True):
        _draw_bars(axes, bars, least_width)
        axes.set_ylabel(label)
        axes.set_title(title, loc="left")
    _add_legend(figure, places, "outside upper right", {}, 6)
    figure.supxlabel(CAPTION, fontsize=8)
    return figure


def _draw_bars(axes: Axes, bars: Sequence[Bars], least_width: float) -> None:
    """Bars with 95% intervals, each draw as a point, published values as stars, a cross where there is no result.

    The axis is at least `least_width` bars wide, so that a few bars are as narrow as many."""
    places = [0.0]
    for left, right in pairwise(bars):
        places.append(places[-1] + 1 + GAP * (left.group != right.group))
    for place, pair in zip(places, bars, strict=True):
        for kind, middle in ((WITHOUT, place - BAR_WIDTH / 2), (WITH, place + BAR_WIDTH / 2)):
            if kind in pair.summaries:
                _draw_bar(axes, middle, pair.summaries[kind], kind)
            if kind in pair.published:
                label, right = f"{PUBLISHED}, {kind}", middle + BAR_WIDTH / 4
                axes.plot(right, pair.published[kind], "*", label=label, clip_on=False, **STARS[kind])
    _label_bars(axes, places, bars)
    margin = max(0.6, (least_width - places[-1]) / 2)
    axes.set_xlim(-margin, places[-1] + margin)
    axes.axhline(0, color="black", linewidth=0.8)
    _finish_scores(axes)


def _draw_bar(axes: Axes, middle: float, summary: Summary, kind: str) -> None:
    if summary.value is None:
        axes.plot(middle, 0, label="no result", zorder=5, **NO_RESULT)
        return
    axes.bar(middle, summary.value, BAR_WIDTH, edgecolor="black", linewidth=0.6, label=kind, **BARS[kind])
    if summary.low is not None and summary.high is not None:
        span = [[max(summary.value - summary.low, 0)], [max(summary.high - summary.value, 0)]]
        axes.errorbar(middle, summary.value, span, color="black", linewidth=1, capsize=2)
    if len(summary.values) > 1:
        left = [middle - BAR_WIDTH / 4] * len(summary.values)
        axes.plot(left, summary.values, label="a draw", clip_on=False, **A_DRAW)


def _label_bars(axes: Axes, places: Sequence[float], bars: Sequence[Bars]) -> None:
    """A label for each pair of bars, and below them one for each group."""
    axes.set_xticks(places, [pair.label for pair in bars], fontsize=8)
    groups: dict[str, list[float]] = {}
    for place, pair in zip(places, bars, strict=True):
        groups.setdefault(pair.group, []).append(place)
    lines = max(pair.label.count("\n") for pair in bars) + 1
    below = axes.secondary_xaxis(location=0)
    below.set_xticks([sum(of_group) / len(of_group) for of_group in groups.values()], list(groups), fontsize=9)
    below.tick_params(length=0, pad=8 + 10.5 * lines)


def dare_figure(lines: Lines) -> Figure | None:
    """A panel for each method: for each set a line through neither, M3, DARE and both."""
    steps = ((False, False, "neither"), (True, False, "M3"), (False, True, "DARE"), (True, True, "both"))
    merges = [merge for merge in _plain_merges() if any(line[:3] == merge and line[4] for line in lines)]
    if not merges:
        return None
    figure, panels, datasets = _trend_panels(lines, merges, (3.7, 3.8), sharey=True)
    for axes, merge in zip(panels, merges, strict=True):
        for dataset in datasets:
            look, shift = _look(dataset), _shift(dataset, datasets)
            found = [lines.get(line_of(merge, mixup, dare, dataset)) for mixup, dare, _ in steps]
            drawn = [(place + shift, summary) for place, summary in enumerate(found) if _has_value(summary)]
            _draw_trend(axes, drawn, dataset, look)
            metrics = {metric for _, summary in drawn for metric in summary.metrics}
            for place, (mixup, dare, _) in enumerate(steps):
                known = published_value(*merge[:2], mixup, dare, dataset)
                if known is not None and known.metric in metrics:
                    axes.plot(place + shift, known.value, **_hollow(look))
        axes.set_xticks(range(len(steps)), [name for _, _, name in steps])
        axes.set_xlim(-0.5, len(steps) - 0.5)
        _finish_scores(axes)
    more = {f"hollow: {PUBLISHED}": Line2D([], [], **_hollow({"color": "black", "marker": "o"}))}
    _add_legend(figure, panels, "outside lower center", more, 6)
    return figure


def alpha_figure(lines: Lines) -> Figure | None:
    """A panel for each merge with draws at several α: each set's mean against α, every draw as a point."""
    merges = [merge for merge in _plain_merges() if len(alphas_of(lines, merge)) > 1]
    if not merges:
        return None
    figure, panels, datasets = _trend_panels(lines, merges, (6.8, 4.4))
    for axes, merge in zip(panels, merges, strict=True):
        alphas = alphas_of(lines, merge)
        for dataset in datasets:
            look, shift = _look(dataset), _shift(dataset, datasets)
            found = {alpha: lines.get((*merge, True, False, alpha, dataset, "")) for alpha in alphas}
            drawn = [(alpha * 1.4**shift, summary) for alpha, summary in found.items() if _has_value(summary)]
            if len(drawn) < 2:
                continue
            _draw_trend(axes, drawn, dataset, look)
            plain = lines.get(line_of(merge, False, False, dataset))
            if _has_value(plain):
                axes.axhline(plain.value, color=look["color"], linestyle=look["linestyle"], linewidth=0.9)
                axes.plot(alphas[0] / 1.7 * 2**shift, plain.value, **_hollow(look))
        axes.set_xscale("log")
        axes.set_xticks(alphas, [f"{alpha:g}" for alpha in alphas])
        axes.minorticks_off()
        axes.set_xlim(alphas[0] / 2.4, alphas[-1] * 1.2)
        axes.set_xlabel("α of λ ~ Beta(α, α)")
        _finish_scores(axes)
    mark = {**_hollow({"color": "black", "marker": "o"}), "linestyle": "solid", "linewidth": 0.9}
    _add_legend(figure, panels, "outside lower center", {"hollow: without M3": Line2D([], [], **mark)}, 4)
    return figure


def _plain_merges() -> list[tuple[str, str, str]]:
    return [(models, method, "") for models in GROUPS for method in METHODS.values()]


def _has_value(summary: Summary | None) -> bool:
    return summary is not None and summary.value is not None


def _trend_panels(
    lines: Lines, merges: Sequence[tuple[str, str, str]], size: tuple[float, float], **options: Any
) -> tuple[Figure, Sequence[Axes], list[str]]:
    """A figure with a titled panel for each merge, and the data sets of all of them."""
    figure = Figure(figsize=(size[0] * len(merges), size[1]), layout="constrained")
    panels = figure.subplots(1, len(merges), squeeze=False, **options)[0]
    for axes, (models, method, _) in zip(panels, merges, strict=True):
        axes.set_title(f"{models}, {method}", loc="left")
    panels[0].set_ylabel(TREND_LABEL)
    return figure, panels, [name for name in TASKS if any(line[:3] in merges and line[6] == name for line in lines)]


def _draw_trend(axes: Axes, drawn: Sequence[tuple[float, Summary]], label: str, look: Mapping[str, Any]) -> None:
    """A line through the means, with every draw as a pale point."""
    if drawn:
        axes.plot([place for place, _ in drawn], [summary.value for _, summary in drawn], label=label, **look)
    for place, summary in drawn:
        points = {**look, "linestyle": "", "markersize": 4, "alpha": 0.45}
        axes.plot([place] * len(summary.values), summary.values, **points)


def _look(dataset: str) -> dict[str, Any]:
    """The colour, mark and dashes of a data set."""
    number = TASKS.index(dataset)
    names = {"color": SERIES, "marker": MARKS, "linestyle": DASHES}
    return {name: values[number % len(values)] for name, values in names.items()}


def _hollow(look: Mapping[str, Any]) -> dict[str, Any]:
    """The mark of a data set, large and empty."""
    edge = {"markeredgecolor": look["color"], "markeredgewidth": 1.5, "markerfacecolor": "white"}
    return {**look, **edge, "linestyle": "", "markersize": 9, "clip_on": False, "zorder": 4}


def _shift(dataset: str, datasets: Sequence[str]) -> float:
    """The shift of a data set's marks, so that they do not cover those of another."""
    return 0.16 * (datasets.index(dataset) - (len(datasets) - 1) / 2)


def _finish_scores(axes: Axes) -> None:
    """Make a percentage axis with room for marks at 0 and at 100 (at the highest value if all are low)."""
    low, high = axes.get_ylim()
    high = high if high < 40 else max(high, 105)
    axes.set_ylim(min(low, -0.04 * high), high)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _add_legend(figure: Figure, panels: Iterable[Axes], place: str, more: Mapping[str, Line2D], columns: int) -> None:
    """One legend for all panels and `more`."""
    handles: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    handles |= more
    names = sorted(handles, key=lambda name: LEGEND_ORDER.index(name) if name in LEGEND_ORDER else -1)
    figure.legend([handles[name] for name in names], names, loc=place, ncols=columns, frameon=False)


# The function that draws each figure, and its description for readers who cannot see it.
FIGURES: dict[str, tuple[Callable[[Lines], Figure | None], str]] = {
    "performance": (
        performance_figure,
        "Bars of the scores without M3 and with it, for each group of models, data set and merging method, with 95% "
        "intervals, single draws and published values",
    ),
    "robustness": (
        robustness_figure,
        "Bars of LiveBench's scores and of the performance drop rates of attacked prompts, without M3 and with it, "
        "with 95% intervals, single draws and published values",
    ),
    "dare": (
        dare_figure,
        "Lines of each data set's score with neither, M3, DARE and both, a panel for each merging method, "
        "with single draws and published values",
    ),
    "alpha": (
        alpha_figure,
        "Lines of each data set's score with M3 over α, with single draws, and the score without M3",
    ),
}
