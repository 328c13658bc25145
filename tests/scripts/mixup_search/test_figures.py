"""The figures of a search: panels, axes, entries of the legend, and the number of marks."""

import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from model_merging_methods.merge_parameters import parameters_of
from scripts.mixup_search.choice import SearchSummary
from scripts.mixup_search.figures import draw_figures
from scripts.mixup_search.search_space import Values
from tests.scripts.mixup_search.small_search import SmallSearch

THREE = {
    "roles": ("instruct", "math", "code"),
    "role_of_task": {"gsm8k": "math", "mbpp": "code", "alpaca_eval": "instruct"},
}
REFERENCES = {"equal ratios", "instruct alone", "math alone"}


@pytest.fixture
def found(tmp_path) -> SearchSummary:
    """Ten draws on ten examples of each task, five of them on 40."""
    return SearchSummary(SmallSearch(tmp_path / "results", parameters_of("average_merging")).validate().store)


def marks(axes: Axes, label: str) -> int:
    """The number of points with this entry in the legend."""
    handles, labels = axes.get_legend_handles_labels()
    lines = [handle for handle, of in zip(handles, labels, strict=True) if of == label]
    return sum(len((line.lines[0] if isinstance(line, ErrorbarContainer) else line).get_xdata()) for line in lines)


def legend(figure: Figure) -> set[str]:
    return {text.get_text() for text in figure.legends[0].get_texts()}


def test_the_curve_has_every_draw_and_reference_over_the_ratio(found):
    figure = draw_figures(found)["scores"]
    choice = f"chosen: {found.chosen.name}"
    assert legend(figure) == {"draw", "95% interval of a draw", "draw, over fewer examples", choice} | REFERENCES
    for panel, task in zip(figure.axes, found.tasks, strict=True):
        assert panel.get_title() == f"{task}, 40 validation examples"
        assert panel.get_xlabel().startswith("λ, the ratio of instruct") and panel.get_ylabel() == "score, %"
        assert (marks(panel, "draw"), marks(panel, "draw, over fewer examples")) == (5, 5)
        assert all(marks(panel, label) == 1 for label in (choice, *REFERENCES))
        assert panel.get_xlim() == (-0.03, 1.03)


def test_the_front_shows_each_draw_once(found):
    (panel,) = draw_figures(found)["pareto_front"].axes
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("gsm8k, %", "alpaca_eval, %")
    on_front = len(found.front(found.tasks))
    assert (marks(panel, "draw on the front"), marks(panel, "draw")) == (on_front, 5 - on_front)
    numbers = ", ".join(text.get_text() for text in panel.texts).split(", ")
    assert sorted(numbers) == sorted(name.removeprefix("draw ") for name in found.front(found.tasks))


def test_the_histograms_count_the_compared_draws(found):
    figure = draw_figures(found)["distribution"]
    assert len(figure.axes) == 3 and figure.axes[2].get_title().startswith("mean gain over the fine-tunes\n")
    for panel in figure.axes:
        assert sum(bar.get_height() for bar in panel.patches) == marks(panel, "one draw") == 5
        assert panel.get_title().endswith("of 5 draws above equal ratios") and panel.get_ylabel() == "draws"
    assert legend(figure) == {"draws", "one draw", f"chosen: {found.chosen.name}"} | REFERENCES


@pytest.mark.parametrize(
    ("search", "names", "panels"),
    [
        ({"role_of_task": {"gsm8k": "math"}}, ["scores", "distribution"], 1),
        (THREE, ["scores", "pareto_front", "distribution"], 3 + 3),  # a panel and a scale of colours each
        ({"scaling_coefficient": Values((0.5, 1.5), is_range=True)}, ["scores", "pareto_front", "distribution"], 2),
        ({"alpha": Values((-1.0,))}, ["scores", "pareto_front", "distribution"], 2),  # all draws are the same merge
        ({"num_draws": 4}, ["scores", "pareto_front"], 2),  # two draws are no distribution
    ],
    ids=["one task", "three models", "another option varies", "equal draws", "two draws"],
)
def test_searches_of_other_shapes_have_figures(tmp_path, search, names, panels):
    made = SmallSearch(tmp_path / "results", parameters_of("task_arithmetic"), **search).validate()
    figures = draw_figures(SearchSummary(made.store))
    assert list(figures) == names
    for figure in figures.values():
        figure.draw_without_rendering()
    assert len(figures["scores"].axes) == panels
    assert ("without M3" in legend(figures["scores"])) is (search is not THREE)
