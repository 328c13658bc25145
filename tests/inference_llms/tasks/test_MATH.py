"""MATH: answers are equal after Hendrycks' normalisation; the lenient reading finds them in \\boxed{}, and asks
math-verify."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_llms.tasks import MATH

TWO_UNITS = "1 \\text{ a} 2 \\text{ b}"  # cannot be normalised, so it is compared as it is


@pytest.mark.parametrize(
    ("one", "other", "are_equal"),
    [
        ("\\tfrac12", "\\frac{1}{2}", True),
        ("\\dfrac1{72}", "\\frac{1}{72}", True),
        ("0.5", "1/2", True),
        ("-3/4", "\\frac{-3}{4}", True),
        (".5x", "0.5 x", True),
        ("x=7", "7", True),
        ("\\sqrt3", "\\sqrt{3}", True),
        ("\\left( 1, 2 \\right)", "(1,2)", True),
        ("90^\\circ", "90", True),
        ("\\$3.25", "3.25", True),
        ("12\\%", "12", True),
        ("7 \\text{ cm}", "7", True),
        (TWO_UNITS, TWO_UNITS, True),
        ("\\sqrt", "\\sqrt", True),
        ("1/2", "2/1", False),
        ("x=7=y", "7", False),
        ("abc=7", "7", False),
        ("\\frac{1}{2}", "0.25", False),
        (TWO_UNITS, TWO_UNITS.replace(" ", ""), False),
        ("\\dfrac", "\\frac", False),
        (None, "1", False),
        (None, None, False),
    ],
)
def test_two_spellings_of_one_answer_are_equal(one, other, are_equal):
    assert MATH.is_equivalent(one, other) is are_equal
    assert MATH.is_equivalent(other, one) is are_equal


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
    assert MATH.last_boxed(text) == inside


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("so \\boxed{5}", "5"),
        ("The answer is: $\\boxed{5}$.", "5"),
        ("The answer is: $5$.", "5"),
        ("The answer is: 5", "5"),
        ("The answer is: 12 (since 3*4)", "12"),
        ("So the answer is $(1,2)$. It uses $x=3$.", "(1,2)"),
        ("**Answer:** $x=3$ and $x=4$", "$x=3$ and $x=4$"),
        ("The final answer is:\n\\[\n5\n\\]", "5"),
        ("it is 5", None),
    ],
)
def test_the_lenient_reading_finds_the_answer_without_its_surroundings(completion, answer):
    assert MATH.extract_leniently(completion) == answer


@given(st.text(alphabet="\\sqrtfacbox{}= ./0123$%\n") | st.text(), st.text(alphabet="\\frac{}12"))
def test_no_completion_breaks_the_comparison(one, other):
    assert MATH.is_equivalent(one, other) == MATH.is_equivalent(other, one)
    MATH.extract_leniently("The answer is: " + one)


@pytest.mark.parametrize(
    ("gold", "answer", "is_right"),
    [
        ("5", "5.0", True),
        ("\\text{Evelyn}", "Evelyn", True),
        ("\\text{June 20}", "June 20", True),
        ("1000", "1,000", True),
        ("2\\sqrt{2}", "\\sqrt{8}", True),
        ("5.", "5", True),
        ("5", "5.1", False),
        ("\\text{Evelyn}", "Evelyne", False),
        ("1,000", "1", False),
    ],
)
def test_the_lenient_reading_accepts_other_notations(gold, answer, is_right):
    completions = [f"So $\\boxed{{{answer}}}$.", f"The answer is {answer}.", "no answer"]
    rows = [{"output": f"$\\boxed{{{gold}}}$"}] * 3
    assert MATH.are_leniently_right(completions, rows) == [is_right, is_right, False]
