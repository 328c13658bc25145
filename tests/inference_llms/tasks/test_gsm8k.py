"""GSM8K: the strict and the lenient reading of completions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_llms.tasks import gsm8k


@pytest.mark.parametrize(
    ("completion", "strict", "lenient"),
    [
        ("The answer is: 2,880,000", 2880, 2880000),
        ("The answer is: 7/2", 4, 3.5),
        ("The answer is: 5/2", 2, 2.5),
        ("The answer is: 90/2", 45, 45),
        ("The answer is: 6/00", 6, 6),
        ("The answer is: /3", None, 3),
        ("The answer is: " + "9" * 400, None, None),
        ("The answer is: 1/" + "9" * 5000, None, 0),
        ("The answer is: ٣", 3, 3),
        ("The answer is: .5", 0, 0.5),
        ("The answer is: -1,000/8", -1000, -125),
        ("so 3 + 4 = 7 apples.", None, 7),
        ("it costs $18.50.", None, 18.5),
        ("She has 5, 6, or 7", None, 7),
        ("from 10-3", None, 3),
        ("it is -3", None, -3),
        ("1,2345", None, 2345),
        ("it is -.25.", None, -0.25),
        ("so...5", None, 5),
        ("none", None, None),
        ("", None, None),
    ],
)
def test_awkward_answers_are_read_as_numbers(completion, strict, lenient):
    assert gsm8k.extract_number(completion) == strict
    assert gsm8k.extract_last_number(completion) == lenient


@given(st.text(alphabet="0123456789.,/+-$ ٣²½eE\n") | st.text())
def test_no_completion_breaks_either_reading(text):
    for completion in (text, "The answer is: " + text):
        strict, lenient = gsm8k.extract_number(completion), gsm8k.extract_last_number(completion)
        assert strict is None or isinstance(strict, int)
        assert lenient is None or isinstance(lenient, float)
