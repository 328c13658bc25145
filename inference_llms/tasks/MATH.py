"""MATH: competition problems; the expression after the last "The answer is: " counts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference_llms.data_sets import DataSet, load_from_hub, load_rows
from inference_llms.engines.engine import Sampling
from inference_llms.tasks.math_normalisation import is_equivalent, last_boxed
from inference_llms.tasks.task import Answers, Example, Outcome, Task, share
from utils.output_places import OutputPlaces

PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{problem}\n\n### Response: Let's think step by step."
)
SAMPLING = Sampling(max_tokens=2048, stop=("Instruction:", "Instruction", "Response:", "Response"))
ANSWER_MARK = "The answer is: "
# The set's first home on the hub is closed; this copy holds the same 5,000 test problems by subject.
HUB_COPY = "EleutherAI/hendrycks_math"
SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


def load_published() -> list[dict[str, Any]]:
    return [
        {"instruction": row["problem"], "output": row["solution"], "type": row["type"]}
        for subject in SUBJECTS
        for row in load_from_hub(HUB_COPY, subject, split="test")
    ]


DATA_SET = DataSet(
    files=("MATH_test.jsonl", "MATH_test_500.jsonl"),
    fields={"instruction": str, "output": str},
    published_as=HUB_COPY,
    load_published=load_published,
)


def extract_answer(completion: str) -> str | None:
    """The paper's strict reading: what follows the last "The answer is: ", up to a full stop that ends a
    line, without a final full stop. None where nothing says "The answer is: "."""
    _, mark, answer = completion.rpartition(ANSWER_MARK)
    return answer.split(".\n")[0].strip().removesuffix(".").strip() if mark else None


def extract_leniently(completion: str) -> str | None:
    """The last \\boxed{}, else the strict answer without the dollar signs around it."""
    answer = last_boxed(completion)
    if answer is None:
        answer = extract_answer(completion)
        while answer and len(answer) > 1 and answer[0] == answer[-1] == "$":
            answer = answer[1:-1]
    return without_full_stop(answer)


def without_full_stop(answer: str | None) -> str | None:
    # A few golds hold the full stop of their sentence, which the paper's reading takes for a part of them.
    return answer.removesuffix(".") if answer is not None else None


def load_examples(data_dir: Path | None) -> list[Example]:
    return [
        Example(id=position, prompt=PROMPT.format(problem=row.fields["instruction"]), row=row.fields)
        for position, row in enumerate(load_rows(DATA_SET, data_dir))
    ]


def is_right(completion: str, row: Mapping[str, Any]) -> bool:
    return is_equivalent(extract_answer(completion), last_boxed(row["output"]))


def is_leniently_right(completion: str, row: Mapping[str, Any]) -> bool:
    return is_equivalent(extract_leniently(completion), without_full_stop(last_boxed(row["output"])))


def is_readable(completion: str, row: Mapping[str, Any]) -> bool:
    return bool(extract_answer(completion))


def finish(answers: Answers, places: OutputPlaces) -> Outcome:
    pairs = [(text, example.row) for text, example in zip(answers.completions, answers.examples, strict=True)]
    return Outcome(
        metrics={
            "accuracy": share([is_right(*pair) for pair in pairs]),
            "lenient_accuracy": share([is_leniently_right(*pair) for pair in pairs]),
        }
    )


TASK = Task(
    "MATH", SAMPLING, load_examples, finish, is_right=is_right, is_readable=is_readable, set_files=DATA_SET.files
)
