"""AlpacaEval: open instructions; a judge compares the answers with a reference model's."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from inference_llms.data_sets import DataSet, load_from_hub
from inference_llms.engines.engine import Sampling
from inference_llms.evaluators import alpaca_eval
from inference_llms.evaluators.alpaca_eval import Judge
from inference_llms.task import Answers, Task
from utils.errors import UserError
from utils.output_places import OutputPlaces
from utils.whole_files import write_whole

PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: {instruction} ASSISTANT:"
)
# The hub's repository has a loading script, which `datasets` refuses to run; the file beside it is the set.
HUB_FILE = "hf://datasets/tatsu-lab/alpaca_eval/alpaca_eval.json"


def is_right(completion: str, row: Mapping[str, Any]) -> bool:
    """Exact agreement with the reference output: the rule of searches and of the tiny models, which have no judge."""
    if not isinstance(row.get("output"), str):
        raise UserError("the alpaca_eval set has no reference answers (field 'output') to compare with; leave it out")
    return completion.strip() == row["output"].strip()


def write_files(answers: Answers, places: OutputPlaces) -> tuple[Path, ...]:
    """Write the answers and, if the set has any, its reference outputs for the same instructions."""
    rows = [
        {
            "instruction": example.row["instruction"],
            "output": completion,
            "generator": answers.model,
            "dataset": example.row["dataset"],
        }
        for example, completion in zip(answers.examples, answers.completions, strict=True)
    ]
    references = [example.row for example in answers.examples]
    written = {places.alpaca_eval(): rows}
    if all(isinstance(row.get("output"), str) for row in references):
        written[places.alpaca_eval_references()] = references
    for path, content in written.items():
        write_whole(path, json.dumps(content, indent=4) + "\n")
    return tuple(written)


def judged_by(task: Task, judge: Judge) -> Task:
    """The task with a custom judge, whose config is written beside the answers."""

    def write_with_judge(answers: Answers, places: OutputPlaces) -> tuple[Path, ...]:
        files = task.write_files(answers, places)
        if judge.is_own:
            alpaca_eval.write_judge(files[0], judge)
        return files

    evaluator = replace(task.evaluator, make_command=partial(alpaca_eval.make_command, judge=judge))
    return replace(task, write_files=write_with_judge, evaluator=evaluator)


TASK = Task(
    name="alpaca_eval",
    title="AlpacaEval",
    set_size=805,
    column=1,
    role="instruct",
    data_set=DataSet(
        files=("alpaca_eval.json",),
        fields={"instruction": str, "dataset": str},
        published_as="tatsu-lab/alpaca_eval",
        load_published=lambda: load_from_hub("json", data_files=HUB_FILE, split="train"),
    ),
    make_prompt=lambda row: PROMPT.format(instruction=row["instruction"]),
    make_question=lambda row: row["instruction"],
    sampling=Sampling(max_tokens=2048),
    is_right=is_right,
    write_files=write_files,
    evaluator=alpaca_eval.EVALUATOR,
)
