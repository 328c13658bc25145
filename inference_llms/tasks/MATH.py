"""MATH: competition problems; the expression after the last "The answer is: " counts.

Answers are compared after the normalisation of Hendrycks et al. (2021).
"""

import re
from collections.abc import Mapping
from typing import Any

from inference_llms.data_sets import DataSet, load_from_hub
from inference_llms.engines.engine import Sampling
from inference_llms.task import Task

PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{problem}\n\n### Response: Let's think step by step."
)
ANSWER_MARK = "The answer is: "
QUESTION = '{problem}\n\nThink step by step, and end with "The answer is: " and the answer.'
# The original repository on the hub is closed; this copy has the same 5,000 test problems by subject.
HUB_COPY = "EleutherAI/hendrycks_math"
SUBJECTS = "algebra counting_and_probability geometry intermediate_algebra number_theory prealgebra precalculus"


def load_published() -> list[dict[str, Any]]:
    return [
        {"instruction": row["problem"], "output": row["solution"], "type": row["type"]}
        for subject in SUBJECTS.split()
        for row in load_from_hub(HUB_COPY, subject, split="test")
    ]


def extract_answer(completion: str) -> str | None:
    """The paper's strict reading: the text after the last "The answer is: ", up to a full stop that ends a line,
    without a final full stop. None if there is no "The answer is: "."""
    _, mark, answer = completion.rpartition(ANSWER_MARK)
    return answer.split(".\n")[0].strip().removesuffix(".").strip() if mark else None


def extract_leniently(completion: str) -> str | None:
    """The content of the last \\boxed{}, else the strict answer without dollar signs around it."""
    answer = last_boxed(completion)
    if answer is None:
        answer = extract_answer(completion)
        while answer and len(answer) > 1 and answer[0] == answer[-1] == "$":
            answer = answer[1:-1]
    return without_full_stop(answer)


def without_full_stop(answer: str | None) -> str | None:
    # A few reference answers end in a full stop, which the paper's reading keeps.
    return answer.removesuffix(".") if answer is not None else None


def is_right(completion: str, row: Mapping[str, Any]) -> bool:
    return is_equivalent(extract_answer(completion), last_boxed(row["output"]))


def is_leniently_right(completion: str, row: Mapping[str, Any]) -> bool:
    return is_equivalent(extract_leniently(completion), without_full_stop(last_boxed(row["output"])))


class CannotNormalise(ValueError):
    """The text is not LaTeX that the normalisation understands."""


def last_boxed(text: str) -> str | None:
    """The text inside the last \\boxed{}, or \\fbox{} if there is no \\boxed; None if there is neither."""
    command = "\\boxed" if "\\boxed" in text else "\\fbox"
    _, found, inside = text.rpartition(command)
    if not found or not inside.startswith("{"):
        return None
    depth = 0
    for position, character in enumerate(inside):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return inside[1:position]
    return None


def is_equivalent(answer: str | None, gold: str | None) -> bool:
    """Whether two answers are the same after normalising, or literally, if either cannot be normalised.

    A missing answer equals nothing.
    """
    if answer is None or gold is None:
        return False
    try:
        return normalise(answer) == normalise(gold)
    except CannotNormalise:
        return answer == gold


def normalise(text: str) -> str:
    """Rewrite the common spellings of an answer in one form.

    Raises `CannotNormalise` for two units in one text, and for \\sqrt or \\frac without an argument.
    """
    text = text.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac")
    for ornament in ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$"):
        text = text.replace(ornament, "")
    text = without_units(text).replace("\\%", "")
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = "0" + text
    name, equals, value = text.partition("=")
    if equals and len(name) <= 2 and "=" not in value:
        text = value
    text = with_frac_braces(with_sqrt_braces(text).replace(" ", ""))
    return "\\frac{1}{2}" if text == "0.5" else slash_as_frac(text)


def without_units(text: str) -> str:
    number, *units = text.split("\\text{ ")
    if len(units) > 1:
        raise CannotNormalise(text)
    return number


def with_sqrt_braces(text: str) -> str:
    """\\sqrt3 as \\sqrt{3}."""
    if re.search(r"\\sqrt(\\sqrt|$)", text):
        raise CannotNormalise(text)
    return re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text)


def with_frac_braces(text: str) -> str:
    """\\frac12 and \\frac1{72} with both arguments in braces; unchanged if a second argument is missing."""
    before, *arguments = text.split("\\frac")
    braced = []
    for rest in arguments:
        if not rest:
            raise CannotNormalise(text)
        if rest[0] == "{":
            braced.append(rest)
        elif len(rest) == 1:
            return text
        else:
            denominator = rest[1:] if rest[1] == "{" else f"{{{rest[1]}}}{rest[2:]}"
            braced.append(f"{{{rest[0]}}}{denominator}")
    return "\\frac".join([before, *braced])


def slash_as_frac(text: str) -> str:
    """a/b with two integers as \\frac{a}{b}."""
    match = re.fullmatch(r"(0|-?[1-9][0-9]*)/(0|-?[1-9][0-9]*)", text)
    return f"\\frac{{{match[1]}}}{{{match[2]}}}" if match else text


TASK = Task(
    name="MATH",
    title="MATH",
    set_size=5000,
    column=3,
    role="math",
    data_set=DataSet(
        files=("MATH_test.jsonl", "MATH_test_500.jsonl"),
        fields={"instruction": str, "output": str},
        published_as=HUB_COPY,
        load_published=load_published,
    ),
    make_prompt=lambda row: PROMPT.format(problem=row["instruction"]),
    make_question=lambda row: QUESTION.format(problem=row["instruction"]),
    sampling=Sampling(max_tokens=2048, stop=("Instruction:", "Instruction", "Response:", "Response")),
    metrics={"accuracy": is_right, "lenient_accuracy": is_leniently_right},
    is_readable=lambda completion, row: bool(extract_answer(completion)),
)
