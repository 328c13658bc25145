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
        ("The answer is: 12 (since 3*4)", 12, 12),
        ("The answer is: (3 + 4) * 2 = 14", 3, 14),
        ("The answer is: −5", 5, -5),
        ("The answer is: -$18.50", 18, -18.5),
        ("The answer is: –5", 5, -5),
        ("The answer is: 12\u202f345", 12, 12345),
        ("\\boxed{\\frac{1}{2}}", None, 0.5),
        ("\\boxed{12 \\text{ in 3 days}}", None, 12),
        ("The answer is: 1.5×10^3", 2, 1500),
        ("\\boxed{2 \\times 10^{-2}}", None, 0.02),
        ("The answer is: 3 × 10", 3, 10),
        ("The answer is: 1.5e3", 2, 1500),
        ("the final answer is 12. It took 3 steps.", None, 12),
        ("**Answer:**\n\n18 dollars\n\nCheck: 3 * 6", None, 18),
        ("3 * 4 = 12\n#### 12\nEach has 3.", None, 12),
        ("#### 2. Add them\n9 + 3 = 12", None, 12),
        ("\\boxed{\\$1{,}200} for 3", None, 1200),
        ("#### 5\nThe answer is: six", None, 5),
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
    assert gsm8k.extract_leniently(completion) == lenient


@given(st.text(alphabet="0123456789.,/+-$ ٣²½eE\n") | st.text())
def test_no_completion_breaks_either_reading(text):
    for completion in (text, "The answer is: " + text):
        strict, lenient = gsm8k.extract_number(completion), gsm8k.extract_leniently(completion)
        assert strict is None or isinstance(strict, int)
        assert lenient is None or isinstance(lenient, float)
