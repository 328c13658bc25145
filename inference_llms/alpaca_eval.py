"""AlpacaEval: open instructions; a judge compares the answers with a reference model's."""

import json
import shlex
from pathlib import Path

from inference_llms.data_sets import DataSet, load_from_hub, load_rows
from inference_llms.engine import Sampling
from inference_llms.task import Answers, Example, Outcome, Task
from utils.output_places import OutputPlaces
from utils.whole_files import write_whole

PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: {instruction} ASSISTANT:"
)
SAMPLING = Sampling(max_tokens=2048)
# The hub's repository carries a loading script, which `datasets` refuses to run; the file beside it is the set.
HUB_FILE = "hf://datasets/tatsu-lab/alpaca_eval/alpaca_eval.json"
DATA_SET = DataSet(
    files=("alpaca_eval.json",),
    fields={"instruction": str, "dataset": str},
    published_as="tatsu-lab/alpaca_eval",
    load_published=lambda: load_from_hub("json", data_files=HUB_FILE, split="train"),
)


def load_examples(data_dir: Path | None) -> list[Example]:
    return [
        Example(id=position, prompt=PROMPT.format(instruction=row.fields["instruction"]), row=row.fields)
        for position, row in enumerate(load_rows(DATA_SET, data_dir))
    ]


def finish(answers: Answers, places: OutputPlaces) -> Outcome:
    rows = [
        {
            "instruction": example.row["instruction"],
            "output": completion,
            "generator": answers.model,
            "dataset": example.row["dataset"],
        }
        for example, completion in zip(answers.examples, answers.completions, strict=True)
    ]
    path = places.alpaca_eval()
    write_whole(path, json.dumps(rows, indent=4) + "\n")
    # The evaluator makes a folder of this name; the nested names of merges must not make several.
    name = places.name.replace("/", "_")
    command = ["alpaca_eval", "--model_outputs", str(path.absolute()), "--annotators_config", "chatgpt_fn"]
    return Outcome(files=(path,), evaluator_command=shlex.join([*command, "--name", name]))


TASK = Task("alpaca_eval", SAMPLING, load_examples, finish, set_files=DATA_SET.files)
