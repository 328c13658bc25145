"""The paper's figures: content, no overlaps, and differences by more than colour."""

import re
from dataclasses import replace
from itertools import combinations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scripts import make_tables, plot_figures
from scripts.paper_tables import figures as paper_figures
from scripts.paper_tables.names import METHODS, dataset_name, published_value
from scripts.paper_tables.scores import Score
from scripts.paper_tables.tables import GROUPS, TASKS
from tests.scripts.paper_tables.test_scores import PLAIN, answered, attacked, draw

METRICS = {"AlpacaEval": "win_rate", "HumanEval": "pass@1", "MBPP": "pass@1"}
NAMES = ("performance", "robustness", "dare", "alpha")


def merged(models: str, method: str, dataset: str, alphas: tuple[float, ...] = (0.5,)) -> list[Score]:
    """A merge with a score of 0 without M3, and two draws at each α."""
    about = {"models": models, "method": method, "dataset": dataset, "metric": METRICS.get(dataset, "accuracy")}
    plain = answered(replace(PLAIN, **about), *[False] * 9)
    return [
        plain,
        *(replace(plain, mixup=True, alpha=a, seed=seed, value=10.0 * seed) for a in alphas for seed in (1, 9)),
    ]


def trends(datasets: tuple[str, ...]) -> list[Score]:
    """The merges of the sweep over α, and of M3 with DARE."""
    scores: list[Score] = []
    for dataset in datasets:
        scores += merged("LM & Math", "average", dataset, (0.2, 0.5, 5))
        for method in METHODS.values():
            plain = merged("LM & Code", method, dataset)
            scores += [*plain, *(replace(score, dare=True, seed=score.seed or 0) for score in plain)]
    return scores


def all_of_the_paper() -> list[Score]:
    scores = trends(TASKS)
    rates = [attacked(seed, [True] * 9, [True, False, False] * 3) for seed in (None, 1, 2)]
    for models in GROUPS:
        for method in METHODS.values():
            if (models, method) != ("LM & Math", "average") and models != "LM & Code":
                scores += [score for dataset in TASKS for score in merged(models, method, dataset)]
        for dataset in ("SST-2", "CoLA"):
            for attack in ("bertattack", "deepwordbug", "stresstest"):
                about = {"models": models, "method": "average", "dataset": dataset, "attack": attack}
                scores += [replace(score, **about) for score in rates]
    for task, models in (("instruction_following", GROUPS[2]), ("coding", GROUPS[0]), ("typos", GROUPS[1])):
        scores += merged(models, "average", dataset_name(task))
    return scores


@pytest.fixture(scope="module")
def drawn() -> dict[str, Figure]:
    figures = paper_figures.figures(all_of_the_paper())
    for figure in figures.values():
        FigureCanvasAgg(figure).draw()
    return figures


def legend_handles(figure: Figure) -> dict[str, Line2D]:
    (legend,) = figure.legends
    return {text.get_text(): handle for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)}


def marks(axes, marker: str) -> list[Line2D]:
    return [line for line in axes.lines if line.get_marker() == marker]


def panel(figure: Figure, title: str):
    (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left").partition(":")[0] == title]
    return axes


def test_figures_have_their_panels_axes_and_bars(drawn):
    assert tuple(drawn) == NAMES
    for title in GROUPS:
        axes = panel(drawn["performance"], title)
        assert axes.get_ylabel() == "score (%)"
        bars = [bar for container in axes.containers if isinstance(container, BarContainer) for bar in container]
        assert len(bars) == len(TASKS) * len(METHODS) * 2 and sorted({bar.get_height() for bar in bars}) == [0, 50]
        assert {label.get_text() for label in axes.child_axes[0].get_xticklabels()} == set(TASKS)
    axes = panel(drawn["robustness"], "Attacked prompts, LM & Math")
    assert axes.get_ylabel() == "performance\ndrop rate (%)"
    assert [label.get_text() for label in axes.get_xticklabels()].count("stresstest") == 2
    for method in METHODS.values():
        axes = panel(drawn["dare"], f"LM & Code, {method}")
        assert [label.get_text() for label in axes.get_xticklabels()] == ["neither", "M3", "DARE", "both"]
    axes = panel(drawn["alpha"], "LM & Math, average")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.2", "0.5", "5"]
    assert axes.get_xlabel() == "α of λ ~ Beta(α, α)" and axes.get_ylabel() == "score (%), mean and (pale) each draw"
    assert set(TASKS) < set(legend_handles(drawn["alpha"]))
    trend = next(line for line in axes.lines if line.get_label() == "GSM8K")
    assert list(trend.get_ydata()) == [50, 50, 50]  # the mean of draws of 10 and 90


@pytest.mark.parametrize("name", NAMES)
def test_labels_do_not_overlap_and_marks_at_0_and_100_are_whole(drawn, name):
    figure = drawn[name]
    extent = figure.legends[0].get_window_extent()
    assert figure.bbox.containsx(extent.x0) and figure.bbox.containsx(extent.x1)
    for axes in figure.axes:
        labels = [*axes.get_xticklabels(), *(text for child in axes.child_axes for text in child.get_xticklabels())]
        boxes = [label.get_window_extent() for label in labels if label.get_text()]
        assert boxes and not any(one.overlaps(other) for one, other in combinations(boxes, 2))
        low, high = axes.get_ylim()
        named = [line for line in axes.lines if line.get_label()[0] != "_"]
        assert low <= -0.035 * high and all(max(line.get_ydata()) < high for line in named)


def test_published_values_are_beside_intervals_and_draws(drawn):
    for name in ("performance", "robustness"):
        for axes in drawn[name].axes:
            intervals = [container for container in axes.containers if isinstance(container, ErrorbarContainer)]
            others = [segment[0][0] for interval in intervals for segment in interval.lines[2][0].get_segments()]
            others += [draw.get_xdata()[0] for draw in marks(axes, "o")]
            stars = [star.get_xdata()[0] for star in marks(axes, "*")]
            assert intervals and all(abs(star - other) > 0.09 for star in stars for other in others)


def test_published_values_differ_without_colour(drawn):
    legend = legend_handles(drawn["performance"])
    colours = [legend[f"published (13B), {kind} M3"].get_markerfacecolor() for kind in ("without", "with")]
    assert colours == ["white", "black"]


@pytest.mark.parametrize("models", GROUPS[:3])
def test_the_published_drop_rates_are_drawn(drawn, models):
    stars = marks(panel(drawn["robustness"], f"Attacked prompts, {models}"), "*")
    expected = {published_value(models, "", mixup, False, "").value for mixup in (False, True)}
    assert {float(star.get_ydata()[0]) for star in stars} == expected


def test_published_values_of_one_place_do_not_cover_each_other(drawn):
    axes = panel(drawn["dare"], "LM & Code, TIES")
    at_0 = [line for line in axes.lines if line.get_markersize() == 9 and line.get_ydata()[0] == 0]
    assert len(at_0) == 4  # HumanEval and MBPP, with neither and with DARE
    places = {(float(line.get_xdata()[0]), line.get_marker()) for line in at_0}
    assert all(abs(one[0] - other[0]) > 0.1 for one, other in combinations(places, 2))
    legend = legend_handles(drawn["dare"])
    assert {mark for _, mark in places} == {legend[name].get_marker() for name in ("HumanEval", "MBPP")}


def test_levels_without_m3_have_the_look_of_their_set(drawn):
    for axes in drawn["alpha"].axes:
        levels = [line for line in axes.lines if list(line.get_xdata()) == [0, 1]]
        assert len({str(line._unscaled_dash_pattern) for line in levels}) == len(levels) == 5
        empty = [line for line in axes.lines if line.get_markersize() == 9]
        assert len({line.get_marker() for line in empty}) == len({float(line.get_xdata()[0]) for line in empty}) == 5


def test_a_sixth_data_set_has_a_different_look(monkeypatch):
    datasets = (*TASKS, "SVAMP")
    monkeypatch.setattr(paper_figures, "TASKS", datasets)
    figures = paper_figures.figures(trends(datasets))
    for figure in (figures["dare"], figures["alpha"]):
        legend = legend_handles(figure)
        looks = {(legend[dataset].get_marker(), str(legend[dataset]._unscaled_dash_pattern)) for dataset in datasets}
        assert len(looks) == 6
        FigureCanvasAgg(figure).draw()
        assert figure.legends[0].get_window_extent().width < figure.bbox.width


def test_the_page_shows_and_describes_the_drawn_figures(tmp_path):
    scores = [answered(PLAIN, True, False), draw(1, True, True)]
    plot_figures.plot_figures(tmp_path, scores)
    make_tables.make_tables(tmp_path, scores)
    page = (tmp_path / "tables" / "tables.html").read_text()
    assert re.findall(r'<img src="([^"]+)"', page) == ["../figures/performance.svg"]
    (description,) = re.findall(r'alt="([^"]+)"', page)
    assert "without M3 and with it" in description
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["performance.png", "performance.svg"]
