"""The paper's figures: with and without M3, robustness, M3 and DARE, and the sweep over α."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scripts.paper_tables.drawing import (
    PUBLISHED,
    WITH,
    WITHOUT,
    Bars,
    add_legend,
    draw_bars,
    draw_trend,
    finish_scores,
    hollow,
    look_of,
)
from scripts.paper_tables.names import METHODS, PAPER_ALPHA
from scripts.paper_tables.published import published_value
from scripts.paper_tables.score import OK, Score
from scripts.paper_tables.summary import Summary, by_line, summarise
from scripts.paper_tables.tables import ATTACKED, GROUPS, LIVEBENCH, TASKS, alphas_of

Lines = dict[tuple, Summary]
Draw = Callable[[], Figure]
KINDS = ((WITHOUT, False), (WITH, True))
CAPTION = "Bars: the value, or the mean of the draws, with its 95% interval."


def figures(scores: Sequence[Score]) -> dict[str, Draw]:
    """By name what draws each figure that there is something to draw of."""
    lines = {line: summarise(of_line) for line, of_line in by_line(scores).items()}
    found = {name: plan(lines) for name, (plan, _) in FIGURES.items()}
    return {name: draw for name, draw in found.items() if draw is not None}


def performance_figure(lines: Lines) -> Draw | None:
    """A panel for each group of models; bars of each method on each set, without M3 and with it."""
    panels = {
        models: [
            bars
            for dataset in TASKS
            for method in METHODS.values()
            if (bars := _bars(lines, models, method, dataset, label=method.replace(" ", "\n"), group=dataset))
        ]
        for models in GROUPS
    }
    return _bars_to_draw({models: ("score (%)", bars) for models, bars in panels.items()}, 9)


def robustness_figure(lines: Lines) -> Draw | None:
    """LiveBench, each set with its pair; and a panel for each pair of performance drop rates under attack."""
    of_livebench = [
        bars
        for dataset in LIVEBENCH
        for models in GROUPS
        for method in METHODS.values()
        if (bars := _bars(lines, models, method, dataset, label=f"{models}\n{method}", group=dataset))
    ]
    panels = {"Out of distribution, LiveBench: higher is better": ("score (%)", of_livebench)}
    for models in GROUPS:
        of_attacks = [
            bars
            for method in METHODS.values()
            for dataset in ATTACKED
            for attack in dict.fromkeys(line[-1] for line in lines if line[-1])
            if (bars := _bars(lines, models, method, dataset, attack, label=attack, group=f"{dataset}, {method}"))
        ]
        # The published drop rates do not say their method, set and attack.
        told = {name: published_value(models, "", mixup, False, "") for name, mixup in KINDS}
        known = {name: published.value for name, published in told.items() if published is not None}
        if of_attacks and known:
            of_attacks.append(Bars("published", "set, attack\nnot said", {}, known))
        panels[f"Attacked prompts, {models}: lower is better"] = ("performance\ndrop rate (%)", of_attacks)
    return _bars_to_draw(panels, 7)


def dare_figure(lines: Lines) -> Draw | None:
    """A panel for each method; for each set a line from neither over M3 and DARE to both."""
    merges = [
        (models, method)
        for models in GROUPS
        for method in METHODS.values()
        if any(line[:2] == (models, method) and line[4] for line in lines)
    ]
    return partial(_draw_dare, lines, merges) if merges else None


def _draw_dare(lines: Lines, merges: Sequence[tuple[str, str]]) -> Figure:
    steps = ((False, False, "neither"), (True, False, "M3"), (False, True, "DARE"), (True, True, "both"))
    figure = Figure(figsize=(3.7 * len(merges), 3.8), layout="constrained")
    panels = figure.subplots(1, len(merges), squeeze=False, sharey=True)[0]
    datasets = [dataset for dataset in TASKS if any(line[:2] in merges and line[6] == dataset for line in lines)]
    for axes, (models, method) in zip(panels, merges, strict=True):
        for dataset in datasets:
            look, aside = _look(dataset), _aside(dataset, datasets)
            drawn = [
                (place + aside, summary)
                for place, (mixup, dare, _) in enumerate(steps)
                if (summary := _line(lines, models, method, mixup, dare, dataset)) and summary.value is not None
            ]
            if drawn:
                draw_trend(axes, drawn, dataset, look)
            for place, (mixup, dare, _) in enumerate(steps):
                known = published_value(models, method, mixup, dare, dataset)
                if known is not None and known.metric in _metrics(summary for _, summary in drawn):
                    axes.plot(place + aside, known.value, **hollow(look))
        axes.set_xticks(range(len(steps)), [name for _, _, name in steps])
        axes.set_xlim(-0.5, len(steps) - 0.5)
        axes.set_title(f"{models}, {method}", loc="left")
        finish_scores(axes)
    panels[0].set_ylabel("score (%), mean and (pale) each draw")
    more = {f"hollow: {PUBLISHED}": Line2D([], [], **hollow({"color": "black", "marker": "o"}))}
    add_legend(figure, panels, "outside lower center", more, 6)
    return figure


def alpha_figure(lines: Lines) -> Draw | None:
    """A panel for each merge that was drawn at several α: the mean of each set over α, every draw as a point."""
    merges = [
        (models, method, alphas)
        for models in GROUPS
        for method in METHODS.values()
        if len(alphas := alphas_of(lines, models, method, "")) > 1
    ]
    return partial(_draw_alpha, lines, merges) if merges else None


def _draw_alpha(lines: Lines, merges: Sequence[tuple[str, str, list[float]]]) -> Figure:
    figure = Figure(figsize=(6.8 * len(merges), 4.4), layout="constrained")
    panels = figure.subplots(1, len(merges), squeeze=False)[0]
    swept = [merge[:2] for merge in merges]
    datasets = [dataset for dataset in TASKS if any(line[:2] in swept and line[6] == dataset for line in lines)]
    for axes, (models, method, alphas) in zip(panels, merges, strict=True):
        for dataset in datasets:
            look, aside = _look(dataset), _aside(dataset, datasets)
            drawn = [
                (alpha * 1.4**aside, summary)
                for alpha in alphas
                if (summary := lines.get((models, method, "", True, False, alpha, dataset, "")))
                and summary.value is not None
            ]
            if len(drawn) < 2:
                continue
            draw_trend(axes, drawn, dataset, look)
            plain = _line(lines, models, method, False, False, dataset)
            if plain is not None and plain.value is not None:
                axes.axhline(plain.value, color=look["color"], linestyle=look["linestyle"], linewidth=0.9)
                axes.plot(alphas[0] / 1.7 * 2**aside, plain.value, **hollow(look))
        axes.set_xscale("log")
        axes.set_xticks(alphas, [f"{alpha:g}" for alpha in alphas])
        axes.minorticks_off()
        axes.set_xlim(alphas[0] / 2.4, alphas[-1] * 1.2)
        axes.set_xlabel("α of λ ~ Beta(α, α)")
        axes.set_title(f"{models}, {method}", loc="left")
        finish_scores(axes)
    panels[0].set_ylabel("score (%), mean and (pale) each draw")
    mark = {**hollow({"color": "black", "marker": "o"}), "linestyle": "solid", "linewidth": 0.9}
    more = {"hollow: without M3": Line2D([], [], **mark)}
    add_legend(figure, panels, "outside lower center", more, 4)
    return figure


# By name, how each is drawn, and what it shows, for those who cannot see it.
FIGURES: dict[str, tuple[Callable[[Lines], Draw | None], str]] = {
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
        "Lines of each data set's score from neither M3 nor DARE over either to both, a panel for each merging method, "
        "with single draws and published values",
    ),
    "alpha": (
        alpha_figure,
        "Lines of each data set's score with M3 over α, with single draws, and the score without M3",
    ),
}


def _bars_to_draw(panels: dict[str, tuple[str, list[Bars]]], least_width: float) -> Draw | None:
    """What draws those panels that have bars. `panels`: by title, what the axis tells, and the bars."""
    panels = {title: panel for title, panel in panels.items() if panel[1]}
    return partial(_draw_panels, panels, least_width) if panels else None


def _draw_panels(panels: dict[str, tuple[str, list[Bars]]], least_width: float) -> Figure:
    """A panel below another."""
    figure = Figure(figsize=(11, 2.8 * len(panels) + 0.8), layout="constrained")
    places = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, (title, (told, bars)) in zip(places, panels.items(), strict=True):
        draw_bars(axes, bars, least_width)
        axes.set_ylabel(told)
        axes.set_title(title, loc="left")
    add_legend(figure, places, "outside upper right", {}, 6)
    figure.supxlabel(CAPTION, fontsize=8)
    return figure


def _bars(
    lines: Lines, models: str, method: str, dataset: str, attack: str = "", *, label: str, group: str
) -> Bars | None:
    """The bars without M3 and with it; None where neither was asked for."""
    summaries = {name: _line(lines, models, method, mixup, False, dataset, attack) for name, mixup in KINDS}
    if not any(summaries.values()):
        return None
    published = {}
    for name, mixup in KINDS:
        # LiveBench's published bars do not say their method.
        known = published_value(models, "" if dataset in LIVEBENCH else method, mixup, False, dataset)
        ours = _metrics([summaries[name]])
        if known is not None and (not ours or known.metric in ours or dataset in LIVEBENCH):
            published[name] = known.value
    return Bars(label, group, summaries, published)


def _line(
    lines: Lines, models: str, method: str, mixup: bool, dare: bool, dataset: str, attack: str = ""
) -> Summary | None:
    return lines.get((models, method, "", mixup, dare, PAPER_ALPHA if mixup else None, dataset, attack))


def _look(dataset: str) -> dict[str, Any]:
    return look_of(TASKS.index(dataset))


def _aside(dataset: str, datasets: Sequence[str]) -> float:
    """How far beside its place one of the data sets is drawn, that none covers another."""
    return 0.16 * (datasets.index(dataset) - (len(datasets) - 1) / 2)


def _metrics(summaries: Iterable[Summary | None]) -> set[str]:
    return {score.metric for summary in summaries if summary for score in summary.scores if score.status == OK}
