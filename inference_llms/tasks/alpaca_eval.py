"""AlpacaEval: open instructions; a judge compares the answers with a reference model's."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from inference_llms.data_sets import DataSet, load_from_hub, load_rows
from inference_llms.engines.engine import Sampling
from inference_llms.tasks.task import Answers, Example, Outcome, Task
from utils.output_places import OutputPlaces
from utils.whole_files import write_whole

PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: {instruction} ASSISTANT:"
)
SAMPLING = Sampling(max_tokens=2048)
# The paper's is chatgpt_fn, whose model gpt-3.5-turbo-16k-0613 is no longer served.
ANNOTATOR = "weighted_alpaca_eval_gpt-4o-mini-2024-07-18"
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
    files = (path, *write_references(answers, places))
    return Outcome(files=files, evaluator_command=shlex.join(evaluator_words(files, places.name)))


def write_references(answers: Answers, places: OutputPlaces) -> tuple[Path, ...]:
    """Write the set's own reference outputs to the answered instructions, where the set has them; returns the file."""
    rows = [example.row for example in answers.examples]
    if not all(isinstance(row.get("output"), str) for row in rows):
        return ()
    path = places.alpaca_eval_references()
    write_whole(path, json.dumps(rows, indent=4) + "\n")
    return (path,)


def evaluator_words(files: Sequence[Path], name: str) -> list[str]:
    """The evaluator's command for a file of outputs and one of references: the plain win rate, as in the paper."""
    words = ["alpaca_eval", "--model_outputs", str(files[0].absolute())]
    # Without it the evaluator loads a set by its loading script, which `datasets` refuses to run.
    words += [word for file in files[1:] for word in ("--reference_outputs", str(file.absolute()))]
    words += ["--annotators_config", ANNOTATOR, "--fn_metric", "get_winrate", "--sort_by", "win_rate"]
    # The judge's answers, failed ones too: by default inside the evaluator's package, where nobody would look for them.
    words += ["--caching_path", str(files[0].absolute().with_name(f"{files[0].name}_annotations_cache.json"))]
    # The evaluator makes a folder of this name; the nested names of merges must not make several.
    return [*words, "--name", name.replace("/", "_")]


TASK = Task("alpaca_eval", SAMPLING, load_examples, finish, set_files=DATA_SET.files)
