"""Figures of a search: score against ratio, the Pareto front of two tasks, the spread of the draws' scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations, cycle, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scripts.mixup_search.choice import Scores, SearchSummary, has_all
from scripts.mixup_search.search_space import Candidate
from utils.palette import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION, YELLOW
from utils.whole_files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colour, marker and dashes of each reference, so that figures are legible in black and white too.
_EQUAL, _PLAIN = (ORANGE, "D", "solid"), (BLACK, "X", (0, (1, 2)))
_FINETUNED = ((GREEN, "^", (0, (6, 2))), (VERMILION, "v", (0, (1, 1))), (PURPLE, "s", (0, (3, 1, 1, 1))))
_GREY, _LIGHT_GREY = "#777777", "#cccccc"
_FEWEST_DRAWS = 5  # of a histogram
_CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])  # of the triangle of three models


@dataclass(frozen=True)
class Across:
    """What the scores are drawn against: a candidate's value, or None if it has none."""

    label: str
    value: Callable[[Candidate], float | None]
    limits: tuple[float, float] | None = None


def _across(summary: SearchSummary) -> Iterator[Across]:
    """λ of two models, the ratio of each of several models, or each varied option of a search without ratios."""
    if not summary.has_ratios:
        for name in summary.varied:
            yield Across(summary.label(name), lambda candidate, name=name: candidate.option(name))
        return
    first, *others = summary.roles
    if len(others) == 1:
        label = f"λ, the ratio of {first}    (0: {others[0]} alone, 1: {first} alone)"
        yield Across(label, lambda candidate: candidate.ratios and candidate.ratios[0], (-0.03, 1.03))
        return
    for i, role in enumerate(summary.roles):
        yield Across(f"ratio of {role}", lambda candidate, i=i: candidate.ratios and candidate.ratios[i], (-0.03, 1.03))


def draw_figures(summary: SearchSummary) -> dict[str, Figure]:
    """The figures, by name, for which there are enough draws and tasks."""
    if not summary.compared_draws:
        return {}
    # Nothing varies in a search of one merge.
    figures = {"scores": _scores(summary)} if any(_across(summary)) else {}
    if len(summary.tasks) > 1:
        figures["pareto_front"] = _pareto_fronts(summary)
    if len(summary.compared_draws) >= _FEWEST_DRAWS:
        figures["distribution"] = _distributions(summary)
    return figures


def save_figure(figure: Figure, folder: Path, name: str) -> Path:
    """Save a figure as `<name>.png` and `<name>.svg`; returns the latter. Equal figures give equal bytes."""
    from matplotlib import rc_context

    with whole_file(folder / f"{name}.png") as file:
        figure.savefig(file, format="png", dpi=150)
    with rc_context({"svg.hashsalt": name}), whole_file(folder / f"{name}.svg") as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
    return folder / f"{name}.svg"


def _panels(number: int, width: float = 4.8, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns = number if number <= 3 else 2
    rows = math.ceil(number / columns)
    figure = Figure(figsize=(width * columns, height * rows + 0.6), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(number)]


def _legend(figure: Figure, axes: list[Axes]) -> None:
    """One legend below all panels, each entry once: the draws, then references, then the choice."""
    entries = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    ordered = sorted(entries, key=lambda label: (label.startswith("chosen"), "draw" not in label))
    look = {"loc": "outside lower center", "ncols": 3 if len(axes) == 1 else 4, "frameon": False}
    figure.legend([entries[label] for label in ordered], ordered, **look)


def _scores(summary: SearchSummary) -> Figure:
    is_triangle = summary.has_ratios and len(summary.roles) == 3
    shown = list(product(summary.tasks, [None] if is_triangle else _across(summary)))
    figure, axes = _panels(len(shown), height=4.4 if is_triangle else 3.6)
    for panel, (task, across) in zip(axes, shown, strict=True):
        if across is None:
            _score_triangle(summary, task, panel)
        else:
            _score_curve(summary, task, across, panel)
        panel.set_title(f"{task}, {summary.numbers[task]} validation examples")
    _legend(figure, axes)
    return figure


def _score_curve(summary: SearchSummary, task: str, across: Across, axes: Axes) -> None:
    """Score against λ, a ratio or an option. If it is all that varies, the draws are a curve with a band of their
    intervals."""
    draws = sorted(summary.compared_draws, key=across.value)
    ratios, scores = [across.value(draw) for draw in draws], [_percent(summary.compared, draw, task) for draw in draws]
    free = len(set(summary.varied) - {"alpha"}) + (len(summary.roles) - 1 if summary.has_ratios else 0)
    if free == 1:
        low, high = 100 * np.array([summary.compared[draw.name][task].interval for draw in draws]).T
        axes.fill_between(ratios, low, high, color=BLUE, alpha=0.18, linewidth=0, label="95% interval of a draw")
        axes.plot(ratios, scores, "-", color=BLUE, linewidth=0.8)
        axes.plot(ratios, scores, "o", color=BLUE, markersize=5, label="draw")
    else:
        for draw in draws:
            _point_with_interval(
                summary, draw, task, across, axes, fmt="o", color=BLUE, markersize=5, alpha=0.7, label="draw"
            )
    behind = [draw for draw in summary.draws if draw not in draws and task in summary.reached.get(draw.name, {})]
    if behind:
        label = "draw, over fewer examples"
        scores = [_percent(summary.reached, draw, task) for draw in behind]
        axes.plot([across.value(draw) for draw in behind], scores, "o", color=_GREY, fillstyle="none", label=label)
    for reference, point, line in _reference_styles(summary):
        if task not in summary.compared.get(reference.name, {}):
            continue
        if across.value(reference) is None or (reference.kind != "plain" and not summary.has_ratios):
            axes.axhline(_percent(summary.compared, reference, task), **line)
        else:
            _point_with_interval(summary, reference, task, across, axes, markersize=9, **point)
    if summary.chosen is not None:
        _star(axes, across.value(summary.chosen), _percent(summary.compared, summary.chosen, task), summary.chosen)
    axes.set(xlabel=across.label, xlim=across.limits)
    axes.set_ylabel("score, %")
    axes.grid(alpha=0.3)


def _score_triangle(summary: SearchSummary, task: str, axes: Axes) -> None:
    """Scores as colours at the ratios of three models, each model alone in a corner."""
    axes.fill(*_CORNERS.T, facecolor="none", edgecolor=_GREY, linewidth=1)
    for part in (0.25, 0.5, 0.75):
        for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
            ends = part * _CORNERS[i] + (1 - part) * _CORNERS[[j, k]]
            axes.plot(*ends.T, color=_LIGHT_GREY, linewidth=0.6, zorder=0)
    for role, (x, y), up in zip(summary.roles, _CORNERS, (-0.07, -0.07, 0.06), strict=True):
        axes.text(x, y + up, role, ha="center", va="top" if up < 0 else "bottom")
    shown = [("draw", "o", 45, summary.compared_draws)]
    for reference, point, _ in _reference_styles(summary):
        if reference.kind != "plain" and task in summary.compared.get(reference.name, {}):
            shown.append((reference.name, point["marker"], 100, [reference]))
    scores = [[_percent(summary.compared, one, task) for one in group] for *_, group in shown]
    scale = {"cmap": "cividis", "vmin": min(map(min, scores)), "vmax": max(map(max, scores))}
    for (label, marker, size, group), values in zip(shown, scores, strict=True):
        points = np.array([one.ratios for one in group]) @ _CORNERS
        look = {"s": size, "marker": marker, "edgecolors": "black", "linewidths": 0.8}
        drawn = axes.scatter(*points.T, c=values, zorder=3, **look, **scale)
        axes.plot([], [], marker, color="white", markeredgecolor="black", markersize=8, label=label)  # for the legend
    if summary.chosen is not None:
        ring = {"markersize": 15, "fillstyle": "none", "color": VERMILION, "markeredgewidth": 2, "zorder": 4}
        axes.plot(*(summary.chosen.ratios @ _CORNERS), "o", label=f"chosen: {summary.chosen.name}", **ring)
    axes.figure.colorbar(drawn, ax=axes, label="score, %", shrink=0.8)
    axes.set(aspect="equal", xlim=(-0.12, 1.12), ylim=(-0.16, 1.0))
    axes.axis("off")


def _pareto_fronts(summary: SearchSummary) -> Figure:
    pairs = list(combinations(summary.tasks, 2))
    figure, axes = _panels(len(pairs), *((4.8, 4.4) if len(pairs) > 1 else (7.0, 4.8)))
    for panel, (first, second) in zip(axes, pairs, strict=True):
        _pareto_front(summary, first, second, panel)
    _legend(figure, axes)
    return figure


def _pareto_front(summary: SearchSummary, first: str, second: str, axes: Axes) -> None:
    def place(candidate: Candidate) -> tuple[float, float]:
        return _percent(summary.compared, candidate, first), _percent(summary.compared, candidate, second)

    on_front = set(summary.front([first, second]))
    front = sorted(place(draw) for draw in summary.compared_draws if draw.name in on_front)
    axes.step(*zip(*front, strict=True), where="pre", color=BLUE, linewidth=1, label="Pareto front of the draws")
    for label, fill, is_on in (("draw", "none", False), ("draw on the front", "full", True)):
        points = [place(draw) for draw in summary.compared_draws if (draw.name in on_front) is is_on]
        if points:
            axes.plot(*zip(*points, strict=True), "o", color=BLUE, fillstyle=fill, markersize=6, label=label)
    for reference, point, _ in _reference_styles(summary):
        if has_all(summary.compared, reference, (first, second)):
            axes.plot(*place(reference), markersize=10, zorder=4, **point)
    if summary.chosen is not None:
        _star(axes, *place(summary.chosen), summary.chosen)
    for point in dict.fromkeys(front):
        names = [draw.name.removeprefix("draw ") for draw in summary.compared_draws if place(draw) == point]
        axes.annotate(", ".join(names), point, (5, 5), textcoords="offset points", fontsize=8)
    axes.set(title="scores on the validation part; numbers are draws", xlabel=f"{first}, %", ylabel=f"{second}, %")
    axes.margins(0.08)
    axes.grid(alpha=0.3)


def _distributions(summary: SearchSummary) -> Figure:
    """A histogram of the draws' scores in each task, and of their mean gains if they have any."""
    panels = [
        (task, "score, %", {name: scores[task].score for name, scores in summary.compared.items() if task in scores})
        for task in summary.tasks
    ]
    if summary.gains:
        means = {one.name: summary.mean_gain(one) for one in summary.candidates if one.name in summary.gains}
        panels.append(("mean gain over the fine-tunes", "percentage points", means))
    figure, axes = _panels(len(panels), height=3.4)
    for panel, (title, unit, values) in zip(axes, panels, strict=True):
        _distribution(summary, title, values, panel)
        panel.set_xlabel(unit)
    _legend(figure, axes)
    return figure


def _distribution(summary: SearchSummary, title: str, values: dict[str, float], axes: Axes) -> None:
    drawn = np.array([100 * values[draw.name] for draw in summary.compared_draws])
    edges = np.histogram_bin_edges(drawn, bins="auto" if np.ptp(drawn) > 0 else 1)
    axes.hist(drawn, edges, color=BLUE, alpha=0.35, edgecolor=BLUE, label="draws")
    axes.plot(drawn, np.zeros_like(drawn), "|", color=BLUE, markersize=12, markeredgewidth=1.2, label="one draw")
    for reference, _, line in _reference_styles(summary):
        if reference.name in values:
            axes.axvline(100 * values[reference.name], **line)
    if summary.chosen is not None:
        _star(axes, 100 * values[summary.chosen.name], 0, summary.chosen)
    if summary.baseline is not None and summary.baseline.name in values:
        above = int((drawn > 100 * values[summary.baseline.name]).sum())
        title += f"\n{above} of {len(drawn)} draws above {summary.baseline.name}"
    axes.set(title=title, ylabel="draws")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", alpha=0.3)


def _reference_styles(summary: SearchSummary) -> list[tuple[Candidate, dict[str, Any], dict[str, Any]]]:
    """Each reference with its style as a point and as a line across a panel, the same in all figures."""
    finetuned, styles = cycle(_FINETUNED), []
    for one in summary.references:
        colour, marker, dashes = {"equal": _EQUAL, "plain": _PLAIN}.get(one.kind) or next(finetuned)
        shared = {"color": colour, "label": one.name}
        point = {"marker": marker, "markeredgecolor": "black", "linestyle": "none", **shared}
        styles.append((one, point, {"linestyle": dashes, "linewidth": 2, **shared}))
    return styles


def _percent(scores: Scores, candidate: Candidate, task: str) -> float:
    return 100 * scores[candidate.name][task].score


def _point_with_interval(
    summary: SearchSummary, candidate: Candidate, task: str, across: Across, axes: Axes, **style: Any
) -> None:
    score, (low, high) = summary.compared[candidate.name][task].score, summary.compared[candidate.name][task].interval
    ends = [[100 * (score - low)], [100 * (high - score)]]
    axes.errorbar(across.value(candidate), 100 * score, ends, capsize=3, elinewidth=1, zorder=3, **style)


def _star(axes: Axes, x: float, y: float, chosen: Candidate) -> None:
    look = {"color": YELLOW, "markeredgecolor": "black", "markersize": 15, "zorder": 5, "clip_on": False}
    axes.plot(x, y, "*", label=f"chosen: {chosen.name}", **look)
