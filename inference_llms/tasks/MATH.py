"""MATH: competition problems; the expression after the last "The answer is: " counts.

Answers are compared after the normalisation of Hendrycks et al. (2021); the lenient reading also asks math-verify.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from inference_llms.answer_extraction import ANSWER_WORDS, first_sentence, last_boxed
from inference_llms.data_sets import DataSet, load_from_hub
from inference_llms.engines.engine import Sampling
from inference_llms.evaluators import math_verify
from inference_llms.task import LenientReading, Task

PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{problem}\n\n### Response: Let's think step by step."
)
ANSWER_MARK = "The answer is: "
QUESTION = '{problem}\n\nThink step by step, and end with "The answer is: " and the answer.'
LENIENT_MARK = re.compile(ANSWER_WORDS)
WORDS = re.compile(r"\\(?:text|textbf|mbox|mathrm|mathbf)\{([^{}]*)\}")
# Mathematics on separate lines.
DISPLAY = re.compile(r"[\s*]*(?:\$\$(.+?)\$\$|\\\[(.+?)\\\])", re.DOTALL)
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
    """The content of the last \\boxed{}, else the first sentence after the last "The answer is" or a variant of it,
    without dollar signs around it."""
    answer = last_boxed(completion)
    if answer is None:
        _, *marked = LENIENT_MARK.split(completion)
        if not marked:
            return None
        display = DISPLAY.match(marked[-1])
        answer = first_sentence(marked[-1]) if display is None else (display[1] or display[2]).strip()
        if re.fullmatch(r"\$[^$]+\$", answer):
            answer = answer[1:-1]
    return without_full_stop(answer)


def without_full_stop(answer: str | None) -> str | None:
    # A few reference answers end in a full stop, which the paper's reading keeps.
    return answer.removesuffix(".") if answer is not None else None


def without_commands(answer: str | None) -> str | None:
    """\\text{June 20} as June 20."""
    return None if answer is None else WORDS.sub(r"\1", answer)


def is_right(completion: str, row: Mapping[str, Any]) -> bool:
    return is_equivalent(extract_answer(completion), last_boxed(row["output"]))


def are_leniently_right(completions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[bool]:
    answers = [extract_leniently(completion) for completion in completions]
    golds = [without_full_stop(last_boxed(row["output"])) for row in rows]
    verdicts = [
        is_equivalent(answer, gold) or is_equivalent(without_commands(answer), without_commands(gold))
        for answer, gold in zip(answers, golds, strict=True)
    ]
    unequal = [number for number, is_right in enumerate(verdicts) if not is_right and answers[number] and golds[number]]
    verified = math_verify.are_equal([(golds[number], answers[number]) for number in unequal])
    for number, is_right in zip(unequal, verified, strict=True):
        verdicts[number] = is_right
    return verdicts


class CannotNormalise(ValueError):
    """The text is not LaTeX that the normalisation understands."""


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
    metrics={"accuracy": is_right},
    lenient=LenientReading(version=2, are_right=are_leniently_right),
    is_readable=lambda completion, row: bool(extract_answer(completion)),
)
