"""The report of a search, whole or half done: tables on the screen, pictures, and one page that holds all."""

import re
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from model_merging_methods.merge_parameters import Mask, MergeParameters
from scripts.mixup_search.choice import RULE
from scripts.mixup_search.findings import find_out
from scripts.mixup_search.report import report_lines, write_report
from scripts.mixup_search.save_command import save_command
from scripts.mixup_search.search_space import Values
from scripts.mixup_search.tables import verdict
from tests.mixup_search.small_search import SmallSearch
from utils.errors import UserError

TIES = MergeParameters("ties_merging", mask=Mask(0.2, True), seed=3)


@pytest.fixture
def whole(tmp_path) -> SmallSearch:
    """A search that is done."""
    search = SmallSearch(tmp_path / "results", TIES).validate()
    chosen = find_out(search.store).chosen
    return search.test(chosen, search.references[0])


def test_the_screen_shows_every_candidate_and_the_tested_choice(whole):
    findings, lines = find_out(whole.store), report_lines(whole.store)
    text = "\n".join(lines)
    assert findings.missing() == []
    assert "still missing" not in text
    rows = {
        row.name: next(line for line in lines if re.match(rf"[* ]  {row.name} ", line)) for row in findings.candidates
    }
    assert [name for name, row in rows.items() if row.startswith("*")] == [findings.chosen.name]
    for task in findings.tasks:
        score = findings.compared[findings.chosen.name][task]
        low, high = score.interval
        assert f"{100 * score.score:.1f}% [{100 * low:.1f}, {100 * high:.1f}]" in rows[findings.chosen.name]
    assert f"{findings.chosen.parameters.mixup.weights[0]:.4f}" in rows[findings.chosen.name]
    assert " of 10" in rows["draw 7"], "it was left behind after ten examples"
    assert f"{findings.chosen.name} (chosen)" in text
    assert findings.differences.keys() == {"gsm8k", "alpaca_eval", "mean"}
    assert verdict(findings) in lines
    assert f"  {save_command(findings.identity, findings.chosen.parameters)}" in lines


def test_faulty_answers_are_marked_and_explained(whole, tmp_path):
    findings = find_out(whole.store)
    assert findings.faults == {} and " !" not in "\n".join(report_lines(whole.store))
    chosen = findings.chosen.name
    with whole.store._connection as connection:
        for candidate in (chosen, "draw 7"):
            connection.execute(
                "UPDATE answers SET completion = '' WHERE candidate = ? AND task = 'gsm8k' AND example < 8",
                (candidate,),
            )
    lines = report_lines(whole.store)
    told = f"gsm8k, {chosen} and 1 more: of 100 answers: 16 empty"
    assert f"! check the completions: {told}" in lines
    assert [line[3:].split("  ")[0] for line in lines if "] !" in line or "of 10 !" in line] == [chosen, "draw 7"]
    assert told in _Page(write_report(whole.store, tmp_path / "report").read_text(encoding="utf-8")).text


def test_the_difference_on_the_test_part_is_over_the_test_answers(whole):
    findings = find_out(whole.store)
    for task in findings.tasks:
        chosen, equal = (findings.tested[one.name][task] for one in (findings.chosen, findings.equal))
        assert findings.differences[task].mean == pytest.approx(chosen.score - equal.score)
        assert findings.differences[task].examples == chosen.examples == 60


@pytest.mark.parametrize(("right", "told"), [(30, "above"), (10, "below")])
def test_the_outcome_is_told_whatever_it_is(whole, right, told):
    chosen = find_out(whole.store).chosen
    with whole.store._connection as connection:
        for candidate, number in ((chosen.name, right), ("equal ratios", 20)):
            connection.execute(
                'UPDATE answers SET "right" = (example < ?) WHERE candidate = ? AND part = ?',
                (number, candidate, "test"),
            )
    sentence = verdict(find_out(whole.store))
    assert f"{chosen.name} scores {told} equal ratios by 16.7 points" in sentence
    assert "does not hold 0" in sentence


class _Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags, self.ids, self.references, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            elif name in ("src", "href", "xlink:href"):
                self.references.append(value)

    def handle_data(self, data):
        self.text += data


def test_one_page_holds_all_and_needs_no_other_file(whole, tmp_path):
    path = write_report(whole.store, tmp_path / "report")
    assert path.name == "report.html"
    findings, page = find_out(whole.store), _Page(path.read_text(encoding="utf-8"))
    assert page.tags.count("svg") == 3
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert all(reference.startswith("#") and reference[1:] in page.ids for reference in page.references)
    assert len(set(page.ids)) == len(page.ids)
    assert "@import" not in page.text
    for said in (RULE, findings.identity["split"], verdict(findings)):
        assert said in page.text
    assert save_command(findings.identity, findings.chosen.parameters) in page.text
    assert escape("'zoo/base model'") in path.read_text(encoding="utf-8")
    for candidate in findings.candidates:
        assert candidate.name in page.text


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_pictures_are_saved_as_png_and_svg_and_are_the_same_each_time(whole, tmp_path):
    write_report(whole.store, tmp_path / "report")
    first = pictures(tmp_path / "report")
    names = ("distribution", "pareto_front", "scores")
    assert list(first) == sorted([f"{name}.{kind}" for name in names for kind in ("png", "svg")] + ["report.html"])
    write_report(whole.store, tmp_path / "report")
    assert pictures(tmp_path / "report") == first


def words(svg: Path) -> str:
    """The text of a picture, which matplotlib leaves in comments beside the letters' shapes."""
    ElementTree.parse(svg)
    return "\n".join(re.findall(r"<!-- (.*?) -->", svg.read_text(encoding="utf-8")))


def test_pictures_name_their_axes_and_marks(whole, tmp_path):
    write_report(whole.store, tmp_path)
    chosen = find_out(whole.store).chosen.name
    curve = words(tmp_path / "scores.svg")
    marks = ("equal ratios", "instruct alone", "math alone", f"chosen: {chosen}")
    for said in ("gsm8k, 40 validation examples", "draw, over fewer examples", "score, %", "95% interval", *marks):
        assert said in curve
    assert "Pareto front of the draws" in words(tmp_path / "pareto_front.svg")
    for said in ("mean gain over the fine-tunes", " of 4 draws above equal ratios", *marks):
        assert said in words(tmp_path / "distribution.svg")


@pytest.mark.parametrize(
    ("search", "names"),
    [
        ({"role_of_task": {"gsm8k": "math"}}, {"scores", "distribution"}),
        (
            {
                "roles": ("instruct", "math", "code"),
                "role_of_task": {"gsm8k": "math", "mbpp": "code", "alpaca_eval": "instruct"},
            },
            {"scores", "pareto_front", "distribution"},
        ),
        (
            {"draw_by": "sobol", "scaling_coefficient": Values((0.5, 1.5), is_range=True)},
            {"scores", "pareto_front", "distribution"},
        ),
        ({"alpha": Values((-1.0,))}, {"scores", "pareto_front", "distribution"}),  # all draws are the same merge
    ],
)
def test_searches_of_other_shapes_are_reported_too(tmp_path, search, names):
    made = SmallSearch(tmp_path / "results", MergeParameters("task_arithmetic"), **search).validate()
    write_report(made.store, tmp_path / "report")
    assert {path.stem for path in (tmp_path / "report").glob("*.png")} == names
    lines = report_lines(made.store)
    assert any("without M3" in line for line in lines)
    if "scaling_coefficient" in search:
        assert any("scaling_coefficient" in line for line in lines)


def test_a_search_without_results_is_told_in_a_line(tmp_path):
    search = SmallSearch(tmp_path / "results", TIES)
    search.store.add_candidate(search.draws[0])
    for report in (report_lines, lambda store: write_report(store, tmp_path / "report")):
        with pytest.raises(UserError, match=r"^[^\n]*results: holds no results yet; run the search first$"):
            report(search.store)
    assert not (tmp_path / "report").exists()


def test_a_half_done_search_is_reported_with_what_is_missing(tmp_path):
    search = SmallSearch(tmp_path / "results", TIES)
    _, instruct, math_alone = search.references

    def missing() -> str:
        lines = report_lines(search.store)
        return "\n".join(lines[lines.index("still missing:") + 1 :])

    search.score(instruct, 10)
    assert "8 of 8 draws are not drawn yet" in missing()
    assert "no draw can be chosen yet" in missing()
    search.score(search.draws[0], 10)
    assert "math alone: no score on the same validation examples of gsm8k yet" in missing()
    assert "equal ratios: no score on the same validation examples" in missing()
    search.score(math_alone, 10)
    search.score(search.draws[1], 10, tasks=["gsm8k"])
    assert "no validation score in every task yet: draw 1" in missing()
    assert "compared by 10 of 40 gsm8k, 10 of 40 alpaca_eval examples" in missing()
    assert "draw 0: 0 of 60 test examples of gsm8k are scored" in missing()
    assert find_out(search.store).chosen.name == "draw 0"
    page = write_report(search.store, tmp_path / "report").read_text(encoding="utf-8")
    assert all(escape(line.strip()) in page for line in missing().splitlines())
