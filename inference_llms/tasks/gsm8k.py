"""GSM8K: grade-school arithmetic word problems; the first number after the last "The answer is: " counts."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fraction import Fraction
from fraction.Fraction import FractionException

from inference_llms.answer_extraction import ANSWER_WORDS, first_sentence, text_in_braces
from inference_llms.data_sets import DataSet, Row, load_from_hub
from inference_llms.engines.engine import Sampling
from inference_llms.task import LenientReading, Task
from utils.errors import UserError

PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{question}\n\n### Response: Let's think step by step."
)
ANSWER_MARK = "The answer is: "
QUESTION = '{question}\n\nThink step by step, and end with "The answer is: " and the number.'
STRICT_NUMBER = re.compile(r"[+-]?\d*[.,/]?\d+")
# A minus sign counts unless it follows a number or a closing bracket, where it subtracts.
LENIENT_NUMBER = re.compile(
    r"(?P<minus>(?<![\d)\]])[-−–])?\\?[$€£]?"
    r"(?P<number>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])\.\d+)(?P<exponent>[eE][+-]?\d+\b)?"
    r"(?:/(?P<denominator>\d+))?"
)
# LaTeX and typography as LENIENT_NUMBER reads them: thousands, a unit after a number, fractions, powers of ten.
PLAINER = (
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[,!;]|(?<=\d)(?:\\ |[~\u00a0\u2009\u202f])(?=\d{3}(?!\d))"), ""),
    (re.compile(r"(?<=\d)\s*\\(?:text|mathrm)\{[^{}]*\}"), ""),
    (re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}"), r"\1/\2"),
    (re.compile(r"(?<=\d)\s*(?:×|\\times|\\cdot)\s*10\s*\^\s*\{?([+-]?\d+)\}?"), r"e\1"),
)
# "#### 3. Add the prices" is a heading.
LENIENT_MARK = re.compile(ANSWER_WORDS + r"|\\boxed\b|####(?!\s*\d+[.)]\s+[A-Za-z])")


def extract_number(completion: str) -> int | None:
    """The paper's strict reading: the first number after the last "The answer is: ", rounded half to even.

    2,880,000 is read as 2880 and 90/2 as 45; a/0 is a. None if there is no number, or one too large for a float.
    """
    _, mark, answer = completion.rpartition(ANSWER_MARK)
    match = STRICT_NUMBER.search(answer.strip()) if mark else None
    if match is None:
        return None
    text = match.group().replace(",", "")
    numerator, slash, denominator = text.partition("/")
    try:
        if not slash or float(denominator) == 0:
            return round(float(numerator))
        ratio = Fraction(text)
        return round(ratio.numerator / ratio.denominator)
    except (ValueError, OverflowError, RecursionError, FractionException):
        return None


def extract_leniently(completion: str) -> float | None:
    """The lenient reading: the number after the last mark of an answer that has one, else the last number anywhere.

    Marks are "The answer is" and its variants, "####" and \\boxed{}.
    """
    for pattern, plain in PLAINER:
        completion = pattern.sub(plain, completion)
    _, *marked = LENIENT_MARK.split(completion)
    numbers = [number_after_mark(text) for text in reversed(marked)]
    return next((number for number in numbers if number is not None), last_number(completion))


def number_after_mark(text: str) -> float | None:
    """The last number in the braces or the sentence that follows a mark, if possible before any bracket."""
    inside = text_in_braces(text)
    sentence = first_sentence(text) if inside is None else inside
    number = last_number(sentence.partition("(")[0])
    return last_number(sentence) if number is None else number


def last_number(text: str) -> float | None:
    """The last number in a text: 1,200 is 1200, 90/2 is 45, a/0 is a, and 1.5e3 is 1500. None if it is too large."""
    *_, match = None, *LENIENT_NUMBER.finditer(text)
    if match is None:
        return None
    number = float(match["number"].replace(",", "") + (match["exponent"] or ""))
    number /= float(match["denominator"] or 1) or 1
    number = -number if match["minus"] else number
    return number if math.isfinite(number) else None


def gold_number(row: Mapping[str, Any]) -> float:
    """The number at the end of a row's answer; not finite without one."""
    _, mark, gold = row["answer"].rpartition("#### ")
    try:
        return float(gold.replace(",", "")) if mark else math.nan
    except ValueError:
        return math.nan


def check_row(row: Row) -> None:
    if not math.isfinite(gold_number(row.fields)):
        raise UserError(f"{row.place}: the field 'answer' must end in '#### ' and a number; fix the line")


def is_right(completion: str, row: Mapping[str, Any]) -> bool:
    return extract_number(completion) == gold_number(row)


def are_leniently_right(completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[bool]:
    return [extract_leniently(text) == gold_number(row) for text, row in zip(completions, rows, strict=True)]


TASK = Task(
    name="gsm8k",
    title="GSM8K",
    set_size=1319,
    column=2,
    role="math",
    data_set=DataSet(
        files=("gsm8k_test.jsonl",),
        fields={"question": str, "answer": str},
        published_as="openai/gsm8k",
        load_published=lambda: load_from_hub("openai/gsm8k", "main", split="test"),
        check_row=check_row,
    ),
    make_prompt=lambda row: PROMPT.format(question=row["question"]),
    make_question=lambda row: QUESTION.format(question=row["question"]),
    sampling=Sampling(max_tokens=1024, stop=("Instruction:", "Instruction", "Response:", "Response")),
    metrics={"accuracy": is_right},
    lenient=LenientReading(version=3, are_right=are_leniently_right),
    is_readable=lambda completion, row: extract_number(completion) is not None,
)
