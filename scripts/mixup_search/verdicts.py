"""Which completions are right: by the paper's strict reading, by running programs, or by the reference answer."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from inference_llms.evaluators.guard import check_guard
from inference_llms.evaluators.programs import mbpp_problem, programs_pass
from inference_llms.tasks import TASKS, human_eval, mbpp
from inference_llms.tasks.task import Example
from utils.errors import UserError

Verdicts = Callable[[Sequence[Example], Sequence[str]], list[bool]]
RUN_PROGRAMS = ("human_eval", "mbpp")


def agrees_with_reference(examples: Sequence[Example], completions: Sequence[str]) -> list[bool]:
    """Whether an answer is the reference one: AlpacaEval has a judge, which a search has not."""
    return [text.strip() == example.row["output"].strip() for example, text in zip(examples, completions, strict=True)]


def by_row(task: str, examples: Sequence[Example], completions: Sequence[str]) -> list[bool]:
    """By the task's own rule for one answer, which its accuracy goes by."""
    is_right = TASKS[task].is_right
    return [is_right(text, example.row) for example, text in zip(examples, completions, strict=True)]


def passes_human_eval(examples: Sequence[Example], completions: Sequence[str]) -> list[bool]:
    programs = [human_eval.extract_program(text) for text in completions]
    problems = [example.row for example in examples]
    return programs_pass(list(zip(problems, programs, strict=True)))


def passes_mbpp(examples: Sequence[Example], completions: Sequence[str]) -> list[bool]:
    programs = [mbpp.extract_program(text) for text in completions]
    problems = [mbpp_problem(example.row) for example in examples]
    return programs_pass(list(zip(problems, programs, strict=True)))


VERDICTS: dict[str, Verdicts] = {
    "alpaca_eval": agrees_with_reference,
    "human_eval": passes_human_eval,
    "mbpp": passes_mbpp,
}


def verdicts_of_task(task: str) -> Verdicts:
    """How a task's completions are judged; of a task of one's own by its `is_right`."""
    return VERDICTS[task] if task in VERDICTS else partial(by_row, task)


def check_verdicts(examples: Mapping[str, Sequence[Example]], allow_code_execution: bool) -> None:
    """Raise UserError where a task's programs may not or cannot be run, or where its set has no answers to go by."""
    if allow_code_execution and any(name in RUN_PROGRAMS for name in examples):
        check_guard()
    for name in examples:
        if name not in VERDICTS and TASKS[name].is_right is None:
            raise UserError(f"--tasks {name}: nothing tells a right answer from a wrong one; give its Task an is_right")
        if name in RUN_PROGRAMS and not allow_code_execution:
            raise UserError(
                f"--tasks {name}: a search runs the programs that the models write; say that it may with "
                "--allow_code_execution, or leave the task out"
            )
        if name == "alpaca_eval":
            for example in examples[name]:
                if not isinstance(example.row.get("output"), str):
                    raise UserError(
                        "--tasks alpaca_eval: the set has no reference answers (field 'output') to go by; leave the "
                        "task out"
                    )
