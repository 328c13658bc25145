"""math-verify compares answers in LaTeX; a comparison that hangs or crashes costs only its own answer."""

import time

import pytest

from inference_llms.evaluators import math_verify
from utils.errors import UserError

EQUAL = [
    ("5", "5.0"),
    ("\\text{Evelyn}", "Evelyn"),
    ("1000", "1,000"),
    ("\\sqrt{8}", "2\\sqrt{2}"),
    ("\\frac{1}{2}", "0.5"),
    ("x^2+2x+1", "(x+1)^2"),
    ("3,-3", "$x=-3$ and $x=3$"),
]
DIFFERENT = [("5", "6"), ("\\text{Evelyn}", "Evelyne"), ("(1,2)", "(2,1)"), ("1000", "1"), ("5", ""), ("", "")]
# math-verify's own time limit cannot interrupt the first, and the second does not fit in memory.
HANGS, TOO_LARGE = "9^{9^{9^{9}}}", "(" * 20000


def test_equal_answers_in_different_notation_are_equal():
    assert math_verify.are_equal(EQUAL) == [True] * len(EQUAL)


def test_different_answers_are_not_equal():
    assert math_verify.are_equal(DIFFERENT) == [False] * len(DIFFERENT)


def test_a_hanging_comparison_costs_its_limit_and_counts_as_not_equal():
    started = time.monotonic()
    assert math_verify.are_equal([("1", HANGS), ("1", TOO_LARGE), ("1\0\n", "1\ud800"), ("5", "5.0")], seconds=2) == [
        False,
        False,
        False,
        True,
    ]
    assert time.monotonic() - started < 60


def test_a_broken_installation_is_reported(tmp_path, monkeypatch):
    (tmp_path / "math_verify.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError, match="math-verify cannot be imported; install it again"):
        math_verify.are_equal([("1", "1")])
