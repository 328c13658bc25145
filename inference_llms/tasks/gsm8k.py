"""GSM8K: grade-school arithmetic word problems; the last number after "The answer is: " counts."""

import math
import re
from collections.abc import Mapping
from typing import Any

from fraction import Fraction
from fraction.Fraction import FractionException

from inference_llms.data_sets import DataSet, Row, load_from_hub
from inference_llms.engines.engine import Sampling
from inference_llms.task import Task
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
    r"((?:(?<![\d)\]])-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])\.\d+))(?:/(\d+))?"
)


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


def extract_last_number(completion: str) -> float | None:
    """The lenient reading: the last number anywhere, without its thousands commas. 90/2 is 45, and a/0 is a."""
    numbers = LENIENT_NUMBER.findall(completion)
    if not numbers:
        return None
    numerator, denominator = numbers[-1]
    number = float(numerator.replace(",", "")) / (float(denominator or 1) or 1)
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


def is_leniently_right(completion: str, row: Mapping[str, Any]) -> bool:
    return extract_last_number(completion) == gold_number(row)


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
    metrics={"accuracy": is_right, "lenient_accuracy": is_leniently_right},
    is_readable=lambda completion, row: extract_number(completion) is not None,
)
