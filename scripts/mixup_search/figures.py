"""Pictures of a search: score against ratio, the Pareto front of two tasks, the distribution of scores over draws."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scripts.mixup_search.candidate import Candidate, Result
from scripts.mixup_search.findings import Findings, has_all
from utils.whole_files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart; shapes and dashes tell the same in black and white.
_DRAW, _CHOSEN = "#0072B2", "#F0E442"
# Colour, marker and dashes.
_EQUAL, _PLAIN = ("#E69F00", "D", "solid"), ("#000000", "X", (0, (1, 2)))
_FINETUNED = (("#009E73", "^", (0, (6, 2))), ("#D55E00", "v", (0, (1, 1))), ("#CC79A7", "s", (0, (3, 1, 1, 1))))
_PANEL = (4.8, 3.6)  # inches


class _Mark(NamedTuple):
    candidate: Candidate
    colour: str
    marker: str
    dashes: Any

    @property
    def point(self) -> dict[str, Any]:
        """What draws it as a point."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "markeredgecolor": "black",
            "linestyle": "none",
            "label": self.candidate.name,
        }

    @property
    def line(self) -> dict[str, Any]:
        """What draws it as a line across a panel."""
        return {"color": self.colour, "linestyle": self.dashes, "linewidth": 2, "label": self.candidate.name}


def draw_figures(findings: Findings) -> dict[str, Figure]:
    """The pictures that the findings suffice for, by name."""
    if not findings.compared_draws:
        return {}
    figures = {"scores": _scores(findings)}
    if len(findings.tasks) > 1:
        figures["pareto_front"] = _pareto_fronts(findings)
    figures["distribution"] = _distributions(findings)
    return figures


def save_figure(figure: Figure, folder: Path, name: str) -> Path:
    """Save a picture as `<name>.png` and `<name>.svg`; gives the latter. The same picture is always the same bytes."""
    from matplotlib import rc_context

    with whole_file(folder / f"{name}.png") as file:
        figure.savefig(file, format="png", dpi=150)
    with rc_context({"svg.hashsalt": name}), whole_file(folder / f"{name}.svg") as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
    return folder / f"{name}.svg"


def _panels(number: int, panel: tuple[float, float] = _PANEL) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns = number if number <= 3 else 2
    rows = math.ceil(number / columns)
    figure = Figure(figsize=(panel[0] * columns, panel[1] * rows + 0.6), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[number:]:
        unused.remove()
    return figure, axes[:number]


def _legend(figure: Figure, axes: list[Axes]) -> None:
    """One legend below all panels, each entry once: the draws, then references, then what is chosen."""
    entries = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    ordered = sorted(entries, key=lambda label: (label.startswith("chosen"), "draw" not in label))
    columns = 3 if len(axes) == 1 else 4
    handles = [entries[label] for label in ordered]
    figure.legend(handles, ordered, loc="outside lower center", ncols=columns, frameon=False)


def _scores(findings: Findings) -> Figure:
    if len(findings.roles) == 2:
        figure, axes = _panels(len(findings.tasks))
        for panel, task in zip(axes, findings.tasks, strict=True):
            _score_curve(findings, task, panel)
    else:
        figure, axes = _panels(len(findings.tasks), (4.8, 4.4))
        for panel, task in zip(axes, findings.tasks, strict=True):
            _score_triangle(findings, task, figure, panel)
    _legend(figure, axes)
    return figure


def _score_curve(findings: Findings, task: str, axes: Axes) -> None:
    """Score against λ. Where the draws differ by λ alone they make a curve with a band of their intervals."""
    draws = sorted(findings.compared_draws, key=_first_ratio)
    results = [findings.compared[draw.name][task] for draw in draws]
    ratios = [_first_ratio(draw) for draw in draws]
    scores = [100 * result.score for result in results]
    if set(findings.varied) <= {"alpha"}:
        low, high = (100 * np.array([result.interval[end] for result in results]) for end in (0, 1))
        axes.fill_between(ratios, low, high, color=_DRAW, alpha=0.18, linewidth=0, label="95% interval of a draw")
        axes.plot(ratios, scores, "-", color=_DRAW, linewidth=0.8)
        axes.plot(ratios, scores, "o", color=_DRAW, markersize=5, label="draw")
    else:
        for ratio, result in zip(ratios, results, strict=True):
            _point(
                axes, ratio, result, color=_DRAW, marker="o", linestyle="none", markersize=5, alpha=0.7, label="draw"
            )
    behind = [draw for draw in findings.draws if draw not in draws and task in findings.reached.get(draw.name, {})]
    left = [100 * findings.reached[draw.name][task].score for draw in behind]
    if behind:
        label = "draw, over fewer examples"
        axes.plot([_first_ratio(draw) for draw in behind], left, "o", color="#777777", fillstyle="none", label=label)
    for mark in _reference_marks(findings):
        result = findings.compared.get(mark.candidate.name, {}).get(task)
        if result is not None and mark.candidate.kind == "plain":
            axes.axhline(100 * result.score, **mark.line)
        elif result is not None:
            _point(axes, _first_ratio(mark.candidate), result, markersize=9, **mark.point)
    if findings.chosen is not None:
        chosen = findings.compared[findings.chosen.name][task]
        _star(axes, _first_ratio(findings.chosen), 100 * chosen.score, findings.chosen)
    first, second = findings.roles
    axes.set_title(f"{task}, {results[0].examples} validation examples")
    axes.set_xlabel(f"λ, the ratio of {first}    (0: {second} alone, 1: {first} alone)")
    axes.set_ylabel("score, %")
    axes.set_xlim(-0.03, 1.03)
    axes.grid(alpha=0.3)


def _score_triangle(findings: Findings, task: str, figure: Figure, axes: Axes) -> None:
    """Scores as colours at the ratios of three models, each model alone at a corner."""
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    axes.fill(*corners.T, facecolor="none", edgecolor="#777777", linewidth=1)
    for part in (0.25, 0.5, 0.75):
        for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
            ends = np.array([part * corners[i] + (1 - part) * corners[other] for other in (j, k)])
            axes.plot(*ends.T, color="#cccccc", linewidth=0.6, zorder=0)
    for role, corner, (x, y), side in zip(
        findings.roles, corners, ((0, -0.07), (0, -0.07), (0, 0.06)), ("top", "top", "bottom"), strict=True
    ):
        axes.text(corner[0] + x, corner[1] + y, role, ha="center", va=side)
    shown = [("draw", "o", 45, findings.compared_draws)]
    shown += [
        (mark.candidate.name, mark.marker, 100, [mark.candidate])
        for mark in _reference_marks(findings)
        if mark.candidate.kind != "plain" and task in findings.compared.get(mark.candidate.name, {})
    ]
    scores = [100 * findings.compared[one.name][task].score for *_, several in shown for one in several]
    for label, marker, size, several in shown:
        points = np.array([one.parameters.mixup.weights for one in several]) @ corners
        values = [100 * findings.compared[one.name][task].score for one in several]
        drawn = axes.scatter(
            *points.T,
            c=values,
            s=size,
            marker=marker,
            cmap="cividis",
            vmin=min(scores),
            vmax=max(scores),
            edgecolors="black",
            linewidths=0.8,
            zorder=3,
        )
        axes.plot([], [], marker, color="white", markeredgecolor="black", markersize=8, label=label)  # for the legend
    if findings.chosen is not None:
        x, y = np.array(findings.chosen.parameters.mixup.weights) @ corners
        label = f"chosen: {findings.chosen.name}"
        axes.plot(x, y, "o", markersize=15, fillstyle="none", color="#D55E00", markeredgewidth=2, label=label, zorder=4)
    figure.colorbar(drawn, ax=axes, label="score, %", shrink=0.8)
    numbers = findings.compared[findings.compared_draws[0].name][task].examples
    axes.set_title(f"{task}, {numbers} validation examples")
    axes.set_aspect("equal")
    axes.set_xlim(-0.12, 1.12)
    axes.set_ylim(-0.16, 1.0)
    axes.axis("off")


def _pareto_fronts(findings: Findings) -> Figure:
    pairs = list(combinations(findings.tasks, 2))
    figure, axes = _panels(len(pairs), (4.8, 4.4) if len(pairs) > 1 else (7.0, 4.8))
    for panel, (first, second) in zip(axes, pairs, strict=True):
        _pareto_front(findings, first, second, panel)
    _legend(figure, axes)
    return figure


def _pareto_front(findings: Findings, first: str, second: str, axes: Axes) -> None:
    def place(candidate: Candidate) -> tuple[float, float]:
        scores = findings.compared[candidate.name]
        return 100 * scores[first].score, 100 * scores[second].score

    on_front = set(findings.front([first, second]))
    front = sorted(place(draw) for draw in findings.compared_draws if draw.name in on_front)
    axes.step(*zip(*front, strict=True), where="pre", color=_DRAW, linewidth=1, label="Pareto front of the draws")
    for label, fill, is_on in (("draw", "none", False), ("draw on the front", "full", True)):
        points = [place(draw) for draw in findings.compared_draws if (draw.name in on_front) is is_on]
        if points:
            axes.plot(*zip(*points, strict=True), "o", color=_DRAW, fillstyle=fill, markersize=6, label=label)
    for mark in _reference_marks(findings):
        if has_all(findings.compared, mark.candidate, (first, second)):
            axes.plot(*place(mark.candidate), markersize=10, zorder=4, **mark.point)
    if findings.chosen is not None:
        _star(axes, *place(findings.chosen), findings.chosen)
    for draw_place in dict.fromkeys(front):
        names = [draw.name.removeprefix("draw ") for draw in findings.compared_draws if place(draw) == draw_place]
        axes.annotate(", ".join(names), draw_place, (5, 5), textcoords="offset points", fontsize=8)
    axes.set_title("scores on the validation part; numbers are draws")
    axes.set_xlabel(f"{first}, %")
    axes.set_ylabel(f"{second}, %")
    axes.margins(0.08)
    axes.grid(alpha=0.3)


def _distributions(findings: Findings) -> Figure:
    """A histogram of the draws' scores in each task, and of their mean gains where those can be told."""
    panels = [
        (task, "score, %", {name: scores[task].score for name, scores in findings.compared.items() if task in scores})
        for task in findings.tasks
    ]
    if findings.gains:
        means = {one.name: findings.mean_gain(one) for one in findings.candidates if one.name in findings.gains}
        panels.append(("mean gain over the fine-tunes", "percentage points", means))
    figure, axes = _panels(len(panels), (4.8, 3.4))
    for panel, (title, unit, values) in zip(axes, panels, strict=True):
        _distribution(findings, title, values, panel)
        panel.set_xlabel(unit)
    _legend(figure, axes)
    return figure


def _distribution(findings: Findings, title: str, values: dict[str, float], axes: Axes) -> None:
    drawn = np.array([100 * values[draw.name] for draw in findings.compared_draws])
    edges = np.histogram_bin_edges(drawn, bins="auto" if np.ptp(drawn) > 0 else 1)
    axes.hist(drawn, edges, color=_DRAW, alpha=0.35, edgecolor=_DRAW, label="draws")
    axes.plot(drawn, np.zeros_like(drawn), "|", color=_DRAW, markersize=12, markeredgewidth=1.2, label="one draw")
    for mark in _reference_marks(findings):
        if mark.candidate.name in values:
            axes.axvline(100 * values[mark.candidate.name], **mark.line)
    if findings.chosen is not None:
        _star(axes, 100 * values[findings.chosen.name], 0, findings.chosen)
    if findings.equal is not None and findings.equal.name in values:
        above = int((drawn > 100 * values[findings.equal.name]).sum())
        title += f"\n{above} of {len(drawn)} draws above equal ratios"
    axes.set_title(title)
    axes.set_ylabel("draws")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", alpha=0.3)


def _reference_marks(findings: Findings) -> list[_Mark]:
    """How each reference is marked, the same in all pictures."""
    finetuned = iter(_FINETUNED)
    marks = []
    for candidate in findings.references:
        look = _EQUAL if candidate.kind == "equal" else _PLAIN if candidate.kind == "plain" else next(finetuned)
        marks.append(_Mark(candidate, *look))
    return marks


def _first_ratio(candidate: Candidate) -> float:
    return candidate.parameters.mixup.weights[0]


def _point(axes: Axes, x: float, result: Result, **style) -> None:
    """A score with its interval."""
    low, high = result.interval
    ends = [[100 * (result.score - low)], [100 * (high - result.score)]]
    axes.errorbar(x, 100 * result.score, ends, capsize=3, elinewidth=1, zorder=3, **style)


def _star(axes: Axes, x: float, y: float, chosen: Candidate) -> None:
    axes.plot(
        x,
        y,
        "*",
        markersize=15,
        color=_CHOSEN,
        markeredgecolor="black",
        label=f"chosen: {chosen.name}",
        zorder=5,
        clip_on=False,
    )
