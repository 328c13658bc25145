"""The paper's figures: nothing in them covers another, and each thing differs from the next by more than its colour."""

import re
from dataclasses import replace
from itertools import combinations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from scripts import make_tables, plot_figures
from scripts.paper_tables import figures as paper_figures
from scripts.paper_tables.names import DATA_SETS, METHODS
from scripts.paper_tables.published import published_value
from scripts.paper_tables.score import Score
from scripts.paper_tables.tables import GROUPS, TASKS
from tests.paper.test_statistics import PLAIN, answered, attacked, draw
from utils.errors import UserError

METRICS = {"AlpacaEval": "win_rate", "HumanEval": "pass@1", "MBPP": "pass@1"}


def merged(models: str, method: str, dataset: str, alphas: tuple[float, ...] = (0.5,)) -> list[Score]:
    """A merge that is wrong in everything without M3, and two draws of it at each α."""
    what = {"models": models, "method": method, "dataset": dataset, "metric": METRICS.get(dataset, "accuracy")}
    plain = answered(replace(PLAIN, **what), *[False] * 9)
    drawn = [
        replace(plain, mixup=True, alpha=alpha, seed=seed, value=10.0 * seed) for alpha in alphas for seed in (1, 9)
    ]
    return [plain, *drawn]


def with_dare(score: Score) -> Score:
    return replace(score, dare=True, seed=score.seed or 0)


def trends(datasets: tuple[str, ...]) -> list[Score]:
    """The merges of the sweep over α and of M3 with DARE."""
    scores: list[Score] = []
    for dataset in datasets:
        scores += merged("LM & Math", "average", dataset, (0.2, 0.5, 5))
        for method in METHODS.values():
            plain = merged("LM & Code", method, dataset)
            scores += [*plain, *map(with_dare, plain)]
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
                what = {"models": models, "method": "average", "dataset": dataset, "attack": attack}

                scores += [replace(score, **what) for score in rates]
    for task, models in (("instruction_following", GROUPS[2]), ("coding", GROUPS[0]), ("typos", GROUPS[1])):
        scores += merged(models, "average", DATA_SETS[task][0])
    return scores


@pytest.fixture(scope="module")
def drawn() -> dict[str, Figure]:
    figures = {name: draw() for name, draw in paper_figures.figures(all_of_the_paper()).items()}
    for figure in figures.values():
        FigureCanvasAgg(figure).draw()
    return figures


def in_legend(figure: Figure) -> dict[str, Line2D]:
    (legend,) = figure.legends
    return {text.get_text(): handle for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)}


def marks(axes, marker: str) -> list[Line2D]:
    return [line for line in axes.lines if line.get_marker() == marker]


def test_all_four_are_drawn(drawn):
    assert list(drawn) == ["performance", "robustness", "dare", "alpha"]


@pytest.mark.parametrize("name", ["performance", "robustness", "dare", "alpha"])
def test_no_label_runs_into_another_or_out_of_the_picture(drawn, name):
    figure = drawn[name]
    (legend,) = figure.legends
    assert figure.bbox.containsx(legend.get_window_extent().x0) and figure.bbox.containsx(legend.get_window_extent().x1)
    for axes in figure.axes:
        labels = [*axes.get_xticklabels(), *(text for child in axes.child_axes for text in child.get_xticklabels())]
        boxes = [label.get_window_extent() for label in labels if label.get_text()]
        assert boxes and not any(one.overlaps(other) for one, other in combinations(boxes, 2))


@pytest.mark.parametrize("name", ["performance", "robustness", "dare", "alpha"])
def test_what_lies_at_0_or_100_is_not_cut(drawn, name):
    for axes in drawn[name].axes:
        low, high = axes.get_ylim()
        assert low <= -0.035 * high and all(
            max(line.get_ydata()) < high for line in axes.lines if line.get_label()[0] != "_"
        )


def test_a_published_value_stands_beside_the_interval_and_the_draws_of_its_bar(drawn):
    for name in ("performance", "robustness"):
        for axes in drawn[name].axes:
            intervals = [container for container in axes.containers if isinstance(container, ErrorbarContainer)]
            others = [segment[0][0] for interval in intervals for segment in interval.lines[2][0].get_segments()]
            others += [draw.get_xdata()[0] for draw in marks(axes, "o")]
            stars = [star.get_xdata()[0] for star in marks(axes, "*")]
            assert intervals and all(abs(star - other) > 0.09 for star in stars for other in others)


def test_published_values_without_m3_and_with_it_differ_in_grey(drawn):
    legend = in_legend(drawn["performance"])
    colours = [legend[f"published (13B), {kind} M3"].get_markerfacecolor() for kind in ("without", "with")]
    assert colours == ["white", "black"]


@pytest.mark.parametrize("models", GROUPS[:3])
def test_the_published_drop_rates_are_drawn(drawn, models):
    (axes,) = [
        axes
        for axes in drawn["robustness"].axes
        if axes.get_title(loc="left").startswith(f"Attacked prompts, {models}:")
    ]
    values = {float(star.get_ydata()[0]) for star in marks(axes, "*")}
    assert values == {published_value(models, "", mixup, False, "").value for mixup in (False, True)}


def test_published_values_at_0_do_not_cover_each_other(drawn):
    (axes,) = [axes for axes in drawn["dare"].axes if axes.get_title(loc="left") == "LM & Code, TIES"]
    at_0 = [line for line in axes.lines if line.get_markersize() == 9 and line.get_ydata()[0] == 0]
    assert len(at_0) == 4  # HumanEval and MBPP, with neither and with DARE
    places = {(float(line.get_xdata()[0]), line.get_marker()) for line in at_0}
    assert all(abs(one[0] - other[0]) > 0.1 for one, other in combinations(places, 2))
    assert {mark for _, mark in places} == {
        in_legend(drawn["dare"])[name].get_marker() for name in ("HumanEval", "MBPP")
    }


def test_lines_without_m3_have_the_dashes_and_the_mark_of_their_set(drawn):
    for axes in drawn["alpha"].axes:
        level = [line for line in axes.lines if list(line.get_xdata()) == [0, 1]]
        assert len({str(line._unscaled_dash_pattern) for line in level}) == len(level) == 5
        empty = [line for line in axes.lines if line.get_markersize() == 9]
        assert len({line.get_marker() for line in empty}) == 5
        assert len({float(line.get_xdata()[0]) for line in empty}) == 5


def test_a_sixth_data_set_of_the_users_own_has_a_look_of_its_own(monkeypatch):
    datasets = (*TASKS, "SVAMP")
    monkeypatch.setattr(paper_figures, "TASKS", datasets)
    draw = paper_figures.figures(trends(datasets))
    for name in ("dare", "alpha"):
        figure = draw[name]()
        legend = in_legend(figure)
        looks = {(legend[dataset].get_marker(), str(legend[dataset]._unscaled_dash_pattern)) for dataset in datasets}
        assert len(looks) == 6
        FigureCanvasAgg(figure).draw()
        assert figure.legends[0].get_window_extent().width < figure.bbox.width


def test_the_page_shows_the_figures_that_are_drawn_and_says_what_they_show(tmp_path):
    scores = [answered(PLAIN, True, False), draw(1, True, True)]
    plot_figures.plot_figures(tmp_path, scores)
    make_tables.make_tables(tmp_path, scores)
    page = (tmp_path / "tables" / "tables.html").read_text()
    assert re.findall(r'<img src="([^"]+)"', page) == ["../figures/performance.svg"]
    (shown,) = re.findall(r'alt="([^"]+)"', page)
    assert "without M3 and with it" in shown and "svg" not in shown
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["performance.png", "performance.svg"]


@pytest.mark.parametrize("main", [make_tables.main, plot_figures.main])
def test_a_misspelt_folder_is_told_and_not_made(tmp_path, main):
    with pytest.raises(UserError, match=r"paper_resluts: no such folder"):
        main([str(tmp_path / "paper_resluts")])
    with pytest.raises(UserError, match=r"holds no results"):
        main([str(tmp_path)])
    assert list(tmp_path.iterdir()) == []
