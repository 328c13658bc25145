"""MATH: answers equal as Hendrycks' normalisation has it; the lenient reading finds them in \\boxed{}."""

from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inference_llms.tasks.math_normalisation import is_equivalent, last_boxed

from inference_llms.tasks import MATH
from tests.inference_llms.support import (
    DATA,
    golden,
    golden_sampling,
    needs_data,
    needs_golden,
    replay,
    write_rows,
)


@needs_golden
@needs_data
def test_prompt_sampling_and_every_verdict_agree_with_the_published_scripts():
    assert astuple(MATH.SAMPLING) == golden_sampling("MATH")
    examples = MATH.load_examples(DATA)
    assert examples[0].prompt == golden("MATH")["prompt_example"]
    for row in golden("MATH")["rows"]:
        gold = last_boxed(examples[row["index"]].row["output"])
        assert gold == row["gold"]
        assert is_equivalent(MATH.extract_answer(row["completion"]), gold) == row["correct"], row


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\\tfrac12", "\\frac{1}{2}"),
        ("\\dfrac1{72}", "\\frac{1}{72}"),
        ("0.5", "1/2"),
        ("-3/4", "\\frac{-3}{4}"),
        (".5x", "0.5 x"),
        ("x=7", "7"),
        ("\\sqrt3", "\\sqrt{3}"),
        ("\\left( 1, 2 \\right)", "(1,2)"),
        ("90^\\circ", "90"),
        ("\\$3.25", "3.25"),
        ("12\\%", "12"),
        ("7 \\text{ cm}", "7"),
    ],
)
def test_two_spellings_of_one_answer_are_equal(one, other):
    assert is_equivalent(one, other)
    assert is_equivalent(other, one)


@pytest.mark.parametrize(("one", "other"), [("1/2", "2/1"), ("x=7=y", "7"), ("abc=7", "7"), ("\\frac{1}{2}", "0.25")])
def test_other_answers_are_not(one, other):
    assert not is_equivalent(one, other)


def test_an_answer_that_cannot_be_normalised_is_compared_as_it_is():
    two_units = "1 \\text{ a} 2 \\text{ b}"
    assert is_equivalent(two_units, two_units)
    assert not is_equivalent(two_units, two_units.replace(" ", ""))
    assert is_equivalent("\\sqrt", "\\sqrt")
    assert not is_equivalent("\\dfrac", "\\frac")


def test_a_missing_answer_or_gold_is_wrong():
    assert not is_equivalent(None, "1")
    assert not is_equivalent("1", None)
    assert not is_equivalent(None, None)


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("a \\boxed{1} b \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\fbox{x}", "x"),
        ("\\boxed{1", None),
        ("\\boxed 1", None),
        ("", None),
    ],
)
def test_the_gold_is_inside_the_last_box(text, inside):
    assert last_boxed(text) == inside


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("so \\boxed{5}", "5"),
        ("The answer is: $\\boxed{5}$.", "5"),
        ("The answer is: $5$.", "5"),
        ("The answer is: 5", "5"),
        ("it is 5", None),
    ],
)
def test_the_lenient_reading_takes_the_box_or_drops_the_dollars(completion, answer):
    assert MATH.extract_leniently(completion) == answer


@given(st.text(alphabet="\\sqrtfacbox{}= ./0123$%\n") | st.text(), st.text(alphabet="\\frac{}12"))
def test_no_completion_breaks_the_comparison(one, other):
    assert is_equivalent(one, other) == is_equivalent(other, one)
    MATH.extract_leniently("The answer is: " + one)


@needs_data
def test_perfect_completions_score_all_500(tmp_path):
    golds = [last_boxed(example.row["output"]) for example in MATH.load_examples(DATA)]
    rows = [{"id": position, "completion": f" So. The answer is: {gold}."} for position, gold in enumerate(golds)]
    write_rows(tmp_path / "replay/MATH.jsonl", rows)
    score = replay(tmp_path, "--tasks", "MATH", "--data_dir", DATA)["MATH"]
    assert (score["accuracy"], score["lenient_accuracy"], score["examples"]) == (1.0, 1.0, 500)
