"""The report of a search, finished or not, and the command that saves its choice."""

import re
import shlex
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from functools import cache
from html import escape, unescape
from pathlib import Path

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from model_merging_methods.command_line import add_merge_options, chosen_roles, merge_parameters
from model_merging_methods.masks import MASKS
from model_merging_methods.merge_parameters import MergeParameters, mask_of, parameters_of
from model_merging_methods.method import Option
from model_merging_methods.methods import METHODS
from model_merging_methods.mixup import Mixup
from scripts.mixup_search.choice import RULE, SearchSummary
from scripts.mixup_search.report import outcome_lines, report_lines, save_command, write_report
from scripts.mixup_search.search_space import ratios_at
from tests.scripts.mixup_search.small_search import IDENTITY, SmallSearch
from utils.errors import UserError

TIES = parameters_of("ties_merging", mask=mask_of(use_weight_rescale=True), seed=3)


@pytest.fixture
def whole(tmp_path) -> SmallSearch:
    """A finished search."""
    search = SmallSearch(tmp_path / "results", TIES).validate()
    return search.test(SearchSummary(search.store).chosen, search.references[0])


def test_the_text_has_every_candidate_and_the_tested_choice(whole):
    summary, lines = SearchSummary(whole.store), report_lines(whole.store)
    text, chosen = "\n".join(lines), summary.chosen
    assert list(summary.missing()) == [] and "still missing" not in text
    rows = {one.name: next(line for line in lines if re.match(rf"[* ]  {one.name} ", line)) for one in whole.draws}
    assert [name for name, row in rows.items() if row.startswith("*")] == [chosen.name]
    for task in summary.tasks:
        score, (low, high) = summary.compared[chosen.name][task].score, summary.compared[chosen.name][task].interval
        assert f"{100 * score:.1f}% [{100 * low:.1f}, {100 * high:.1f}]" in rows[chosen.name]
    assert f"{chosen.ratios[0]:.4f}" in rows[chosen.name]
    assert " of 10" in rows["draw 7"], "it stopped at ten examples"
    assert f"{chosen.name} (chosen)" in text
    assert outcome_lines(summary)[0] in lines
    assert f"  {save_command(summary.identity, chosen.parameters)}" in lines


def test_faulty_answers_are_marked_and_explained(whole, tmp_path):
    summary = SearchSummary(whole.store)
    assert summary.faults == {} and " !" not in "\n".join(report_lines(whole.store))
    chosen = summary.chosen.name
    whole.store._connection.execute(
        "UPDATE answers SET completion = '' WHERE candidate IN (?, 'draw 7') AND task = 'gsm8k' AND example < 8",
        (chosen,),
    )
    lines = report_lines(whole.store)
    warning = f"gsm8k, {chosen} and 1 more: of 100 answers: 16 empty"
    assert f"! check the completions: {warning}" in lines
    assert [line[3:].split("  ")[0] for line in lines if "] !" in line or "of 10 !" in line] == [chosen, "draw 7"]
    assert warning in write_report(whole.store, tmp_path / "report").read_text(encoding="utf-8")


def test_the_difference_on_the_test_part_is_over_the_test_answers(whole):
    summary = SearchSummary(whole.store)
    assert summary.differences.keys() == {"gsm8k", "alpaca_eval", "mean"}
    for task in summary.tasks:
        chosen, equal = (summary.tested[one.name][task] for one in (summary.chosen, summary.baseline))
        assert summary.differences[task].mean == pytest.approx(chosen.score - equal.score)
        assert summary.differences[task].examples == chosen.examples == 60


@pytest.mark.parametrize(("right", "side"), [(30, "above"), (10, "below")])
def test_the_text_states_a_gain_or_a_loss(whole, right, side):
    chosen = SearchSummary(whole.store).chosen
    for candidate, number in ((chosen.name, right), ("equal ratios", 20)):
        whole.store._connection.execute(
            "UPDATE answers SET \"right\" = (example < ?) WHERE candidate = ? AND part = 'test'", (number, candidate)
        )
    [sentence] = outcome_lines(SearchSummary(whole.store))
    assert f"{chosen.name} scores 16.7 points {side} equal ratios" in sentence
    assert "does not contain 0" in sentence


def test_the_page_is_self_contained_and_reproducible(whole, tmp_path):
    path = write_report(whole.store, tmp_path / "report")
    files = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    summary, page = SearchSummary(whole.store), path.read_text(encoding="utf-8")
    tags, ids = re.findall(r"<(\w+)", page), re.findall(r'\bid="(.*?)"', page)
    assert tags.count("svg") == 3 and not {"script", "link", "img", "iframe"} & set(tags) and "@import" not in page
    assert all(place.startswith("#") and place[1:] in ids for place in re.findall(r'(?:src|href)="(.*?)"', page))
    assert len(set(ids)) == len(ids)
    texts = [RULE, summary.identity["split"], *outcome_lines(summary), *(one.name for one in summary.candidates)]
    texts.append(save_command(summary.identity, summary.chosen.parameters))
    assert [text for text in texts if text not in unescape(page)] == [] and "<each>" not in page
    write_report(whole.store, path.parent)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == files


def test_a_search_without_results_is_one_line(tmp_path):
    search = SmallSearch(tmp_path / "results", TIES)
    search.store.add_candidate(search.draws[0])
    for report in (report_lines, lambda store: write_report(store, tmp_path / "report")):
        with pytest.raises(UserError, match=r"^[^\n]*results: holds no results yet; run the search first$"):
            report(search.store)
    assert not (tmp_path / "report").exists()


def test_the_report_of_a_half_done_search_states_what_is_missing(tmp_path):
    search = SmallSearch(tmp_path / "results", TIES)
    _, instruct, math_alone = search.references

    def missing() -> list[str]:
        return list(SearchSummary(search.store).missing())

    search.score(instruct, 10)
    assert missing() == [
        "10 of 10 draws are not drawn yet",
        "math alone: 0 of 40 validation examples of gsm8k are scored",
        "equal ratios: 0 of 40 validation examples of gsm8k are scored",
        "equal ratios: 0 of 40 validation examples of alpaca_eval are scored",
        "no draw can be chosen or tested yet",
    ]
    search.score(search.draws[0], 10)
    assert "math alone: 0 of 10 validation examples of gsm8k are scored" in missing()
    search.score(math_alone, 10)
    search.score(search.draws[1], 10, tasks=["gsm8k"])
    assert SearchSummary(search.store).chosen.name == "draw 0"
    assert missing() == [
        "8 of 10 draws are not drawn yet",
        "alpaca_eval: no validation score yet for draw 1",
        "no draw has the whole validation part yet; draws are compared by "
        "10 of 40 gsm8k, 10 of 40 alpaca_eval examples",
        "equal ratios: 0 of 10 validation examples of gsm8k are scored",
        "equal ratios: 0 of 10 validation examples of alpaca_eval are scored",
        "draw 0: 0 of 60 test examples of gsm8k are scored",
        "draw 0: 0 of 60 test examples of alpaca_eval are scored",
    ]
    page = write_report(search.store, tmp_path / "report").read_text(encoding="utf-8")
    assert all(escape(line) in page for line in missing())
    assert report_lines(search.store)[-7:] == [f"  {line}" for line in missing()]


THREE = {**IDENTITY, "roles": ["instruct", "math", "code"]}


def parsed(command: str) -> Namespace:
    python, script, *words = shlex.split(command)
    assert (python, script, words.pop()) == ("python", "merge_llms_instruct_math_code.py", "--merge_only")
    return merge_parser().parse_args(words)


@cache
def merge_parser() -> ArgumentParser:
    parser = ArgumentParser()
    add_merge_options(parser)
    return parser


def merge_of(command: str) -> MergeParameters:
    options = parsed(command)
    return merge_parameters(options, chosen_roles(options))


shares_of_models = st.lists(st.floats(0, 1), min_size=1, max_size=2)


@st.composite
def values_of(draw, declared: dict[str, Option], number_of_models: int) -> dict:
    """Values of all options of a method or mask."""
    values = {}
    for name, option in declared.items():
        low, high = max(option.about.low, -10), min(option.about.high, 10)
        if option.type is bool:
            values[name] = draw(st.booleans())
        elif option.type is str:
            values[name] = draw(st.sampled_from(option.about.choices))
        elif option.type is int:
            values[name] = draw(st.integers(int(low), int(high)))
        else:
            number = st.floats(low, high)
            is_by_model = option.is_per_model and draw(st.booleans())
            values[name] = tuple(draw(number) for _ in range(number_of_models)) if is_by_model else draw(number)
    return values


@st.composite
def merges(draw) -> tuple[MergeParameters, int]:
    """A merge that the command line can express, and the number of its models."""
    number = draw(st.sampled_from([2, 3]))
    fitting = [one for one in METHODS.values() if one.models[0] <= number <= (one.models[1] or number)]
    method, mask = draw(st.sampled_from(fitting)), None
    name = draw(st.none() | st.sampled_from(list(MASKS))) if method.takes_mask else None
    if name is not None:
        weight_format = draw(st.sampled_from(["delta_weight", "finetuned_weight"]))
        mask = mask_of(name, weight_format=weight_format, **draw(values_of(MASKS[name].options, number)))
    options = draw(values_of(method.options, number))
    shares = draw(shares_of_models.filter(lambda given: len(given) == number - 1)) if method.takes_ratios else None
    of_command = {one: value for one, value in options.items() if mask is None or one not in mask.values}
    if shares is not None:
        of_command.pop("weight", None)
    parameters = parameters_of(
        method.name,
        mask=mask,
        mixup=None if shares is None else Mixup(ratios_at(shares)),
        seed=draw(st.integers(0, 9)),
        dtype=draw(st.none() | st.just("float16")),
        exclude_param_names_regex=draw(st.sampled_from([(), ("lm_head", r"layers\.[01]\. 'x")])),
        **of_command,
    )
    try:
        parameters.check(number)
    except UserError:
        reject()  # options that contradict each other
    return (parameters if parameters.uses_seed else replace(parameters, seed=0)), number


@given(merges())
def test_the_command_makes_the_merge_of_the_candidate(merge):
    parameters, number = merge
    assert merge_of(save_command(THREE if number == 3 else IDENTITY, parameters)) == parameters


def test_the_command_names_models_of_other_roles():
    identity = {
        **IDENTITY,
        "roles": ["chat", "math"],
        "models": {"pretrained": None, "chat": "org/chat", "math": "a b"},
    }
    options = parsed(save_command(identity, parameters_of("magmax", scaling_coefficient=-0.5)))
    assert chosen_roles(options) == ["chat", "math"] and options.models == ["chat=org/chat", "math=a b"]
    assert merge_parameters(options, ["chat", "math"]) == parameters_of("magmax", scaling_coefficient=-0.5)


def test_the_command_names_the_models_of_the_search():
    identity = {
        **IDENTITY,
        "models": {"pretrained": "-base model", "instruct": None, "math": "org/math", "code": "unused"},
        "models_dir": "/big disk",
        "allow_unrelated": True,
    }
    options = parsed(save_command(identity, parameters_of("average_merging", mixup=Mixup((0.25, 0.75)))))
    assert (options.pretrained_model, options.instruct_model, options.math_model) == ("-base model", None, "org/math")
    assert (options.models_dir, options.allow_unrelated, options.code_model) == (Path("/big disk"), True, None)
