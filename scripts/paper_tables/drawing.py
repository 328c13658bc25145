"""How the figures' bars and lines are drawn, so that they can be told apart in print and by the colour-blind.

Okabe and Ito's colours; hatches, marks and dashes tell the same without colours. What would lie on one another stands
side by side: on a bar its draws left, its interval in the middle, its published value right.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scripts.paper_tables.score import OK
from scripts.paper_tables.summary import Summary

WITHOUT, WITH = "without M3", "with M3"
PUBLISHED = "published (13B)"
BARS = {WITHOUT: {"color": "#56B4E9"}, WITH: {"color": "#E69F00", "hatch": "///"}}
STARS = {
    WITHOUT: {"color": "white", "markeredgecolor": "black", "markersize": 11},
    WITH: {"color": "black", "markeredgecolor": "white", "markersize": 14},
}
A_DRAW = {"marker": "o", "markersize": 3, "markerfacecolor": "white", "markeredgecolor": "black", "linestyle": ""}
NO_RESULT = {"marker": "x", "color": "black", "markersize": 5, "linestyle": ""}
ORDER = (WITHOUT, WITH, "a draw", *(f"{PUBLISHED}, {name}" for name in STARS), "no result")  # in the legend
WIDTH, GAP = 0.4, 0.5  # of a bar, and between groups of bars, in the units of the axis

# Of different lengths, so that further data sets still look different when they begin again.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")
MARKS = ("o", "s", "^", "D", "v", "P")
DASHES = ("solid", (0, (6, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))


@dataclass(frozen=True)
class Bars:
    """The bars without M3 and with it that stand together: their label, that of their group, and by WITHOUT and WITH
    the summaries that were asked for, and the published values."""

    label: str
    group: str
    summaries: Mapping[str, Summary | None]
    published: Mapping[str, float]


def look_of(number: int) -> dict[str, Any]:
    """The colour, mark and dashes of the data set of this number."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKS[number % len(MARKS)],
        "linestyle": DASHES[number % len(DASHES)],
    }


def hollow(look: Mapping[str, Any]) -> dict[str, Any]:
    """The mark of a data set, large and empty."""
    edge = {"markeredgecolor": look["color"], "markeredgewidth": 1.5, "markerfacecolor": "white"}
    return {**look, **edge, "linestyle": "", "markersize": 9, "clip_on": False, "zorder": 4}


def draw_bars(axes: Axes, bars: Sequence[Bars], least_width: float) -> None:
    """Bars with their 95% intervals; each draw as a point; published values as stars; a cross where there is none.

    The axis is `least_width` bars wide or wider: few bars are not drawn broader than many."""
    places = [0.0]
    for left, right in pairwise(bars):
        places.append(places[-1] + 1 + GAP * (left.group != right.group))
    for place, of_place in zip(places, bars, strict=True):
        for name, middle in ((WITHOUT, place - WIDTH / 2), (WITH, place + WIDTH / 2)):
            if name in of_place.summaries:
                _draw_bar(axes, middle, of_place.summaries[name], name)
            if name in of_place.published:
                label = f"{PUBLISHED}, {name}"
                axes.plot(middle + WIDTH / 4, of_place.published[name], "*", label=label, clip_on=False, **STARS[name])
    _label_bars(axes, places, bars)
    margin = max(0.6, (least_width - places[-1]) / 2)
    axes.set_xlim(-margin, places[-1] + margin)
    axes.axhline(0, color="black", linewidth=0.8)
    finish_scores(axes)


def _draw_bar(axes: Axes, middle: float, summary: Summary | None, name: str) -> None:
    if summary is None or summary.value is None:
        axes.plot(middle, 0, label="no result", zorder=5, **NO_RESULT)
        return
    axes.bar(middle, summary.value, WIDTH, edgecolor="black", linewidth=0.6, label=name, **BARS[name])
    if summary.low is not None and summary.high is not None:
        span = [[max(summary.value - summary.low, 0)], [max(summary.high - summary.value, 0)]]
        axes.errorbar(middle, summary.value, span, color="black", linewidth=1, capsize=2)
    values = _values(summary)
    if len(values) > 1:
        axes.plot([middle - WIDTH / 4] * len(values), values, label="a draw", clip_on=False, **A_DRAW)


def _label_bars(axes: Axes, places: Sequence[float], bars: Sequence[Bars]) -> None:
    """The labels of the bars, and below them, once, that of their group."""
    axes.set_xticks(places, [of_place.label for of_place in bars], fontsize=8)
    groups: dict[str, list[float]] = {}
    for place, of_place in zip(places, bars, strict=True):
        groups.setdefault(of_place.group, []).append(place)
    lines = max(of_place.label.count("\n") for of_place in bars) + 1
    middles = [sum(of_group) / len(of_group) for of_group in groups.values()]
    below = axes.secondary_xaxis(location=0)
    below.set_xticks(middles, list(groups), fontsize=9)
    below.tick_params(length=0, pad=8 + 10.5 * lines)


def draw_trend(axes: Axes, drawn: Sequence[tuple[float, Summary]], label: str, look: Mapping[str, Any]) -> None:
    """A line through the means, with every draw as a pale point."""
    axes.plot([place for place, _ in drawn], [summary.value for _, summary in drawn], label=label, **look)
    for place, summary in drawn:
        values = _values(summary)
        axes.plot([place] * len(values), values, **{**look, "linestyle": ""}, markersize=4, alpha=0.45)


def finish_scores(axes: Axes) -> None:
    """An axis of per cent that leaves room for what lies at 0 and at 100, or where all lies low, at its highest."""
    low, high = axes.get_ylim()
    high = high if high < 40 else max(high, 105)
    axes.set_ylim(min(low, -0.04 * high), high)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def add_legend(figure: Figure, panels: Iterable[Axes], place: str, more: Mapping[str, Line2D], columns: int) -> None:
    """One legend of what stands in any of the panels, and `more`."""
    handles: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    handles |= more
    names = sorted(handles, key=lambda name: ORDER.index(name) if name in ORDER else -1)
    figure.legend([handles[name] for name in names], names, loc=place, ncols=columns, frameon=False)


def _values(summary: Summary) -> list[float]:
    return [score.value for score in summary.scores if score.status == OK and score.value is not None]
