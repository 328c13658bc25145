"""GSM8K: what the paper's scripts read out of a completion, and what the lenient reading adds."""

from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_llms.tasks import gsm8k
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
def test_sampling_and_every_extracted_number_agree_with_the_published_scripts():
    assert astuple(gsm8k.SAMPLING) == golden_sampling("gsm8k")
    for row in golden("gsm8k")["rows"]:
        assert gsm8k.extract_number(row["completion"]) == row["extracted"], row


@needs_golden
@needs_data
def test_the_prompt_is_the_published_one():
    assert gsm8k.load_examples(DATA)[0].prompt == golden("gsm8k")["prompt_example"]


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("The answer is: 2,880,000", 2880),
        ("The answer is: 7/2", 4),
        ("The answer is: 5/2", 2),
        ("The answer is: 6/00", 6),
        ("The answer is: /3", None),
        ("The answer is: " + "9" * 400, None),
        ("The answer is: 1/" + "9" * 5000, None),
        ("The answer is: ٣", 3),
        ("", None),
    ],
)
def test_strict_reading_of_awkward_answers(completion, number):
    assert gsm8k.extract_number(completion) == number


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("The answer is: 2,880,000", 2880000),
        ("so 3 + 4 = 7 apples.", 7),
        ("it costs $18.50.", 18.5),
        ("She has 5, 6, or 7", 7),
        ("from 10-3", 3),
        ("it is -3", -3),
        ("1,2345", 2345),
        ("The answer is: .5", 0.5),
        ("it is -.25.", -0.25),
        ("so...5", 5),
        ("The answer is: 90/2", 45),
        ("The answer is: -1,000/8", -125),
        ("6/0", 6),
        ("9" * 400, None),
        ("none", None),
        ("", None),
    ],
)
def test_lenient_reading_takes_the_last_number(completion, number):
    assert gsm8k.extract_last_number(completion) == number


@given(st.text(alphabet="0123456789.,/+-$ ٣²½eE\n") | st.text())
def test_no_completion_breaks_either_reading(text):
    for completion in (text, "The answer is: " + text):
        strict = gsm8k.extract_number(completion)
        assert strict is None or isinstance(strict, int)
        lenient = gsm8k.extract_last_number(completion)
        assert lenient is None or isinstance(lenient, float)


@needs_data
def test_perfect_completions_score_1319_of_1319_from_the_command_line(tmp_path):
    golds = [example.row["gold"] for example in gsm8k.load_examples(DATA)]
    rows = [{"id": position, "completion": f" So. The answer is: {gold:.0f}"} for position, gold in enumerate(golds)]
    write_rows(tmp_path / "replay/gsm8k.jsonl", rows)
    score = replay(tmp_path, "--tasks", "gsm8k", "--data_dir", DATA)["gsm8k"]
    assert (score["accuracy"], score["lenient_accuracy"], score["examples"]) == (1.0, 1.0, 1319)
