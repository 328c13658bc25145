"""Which examples a run answered rightly, read again from its raw completions: what paired comparisons are made of."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from inference_llms import MATH, gsm8k, livebench_typos
from inference_llms.command_line import add_inference_options
from inference_llms.livebench import load_questions
from inference_llms.math_normalisation import is_equivalent, last_boxed
from scripts.paper_tables.commands import ROOT
from utils.command_line import OneLineParser


def _is_right_in_math(completion: str, row: Mapping[str, Any]) -> bool:
    return is_equivalent(MATH.extract_answer(completion), last_boxed(row["output"]))


RIGHT: dict[str, Callable[[str, Mapping[str, Any]], bool]] = {
    "gsm8k": lambda completion, row: gsm8k.extract_number(completion) == row["gold"],
    "MATH": _is_right_in_math,
    "typos": lambda completion, row: livebench_typos.is_correct(completion, row["ground_truth"]),
}


@dataclass(frozen=True)
class Asked:
    """What a command tells of the examples whose answers it scored: the folder of their set, LiveBench's release, and
    of a replay the slice of the set. A run scores every completion that is there, `replayed` being None."""

    data_dir: Path | None
    release: str | None
    replayed: slice | None


def asked_by_command(command: str) -> Asked:
    """Of a command of an entry script, typed at the project's root. Raises UserError where it is none."""
    parser = OneLineParser(allow_abbrev=False, add_help=False)
    add_inference_options(parser)
    parser.add_argument("--livebench_release")
    options, _ = parser.parse_known_args(shlex.split(command)[2:])
    data_dir = None if options.data_dir is None else ROOT / options.data_dir
    replayed = slice(options.start_index, options.end_index) if options.backend == "replay" else None
    return Asked(data_dir, options.livebench_release, replayed)


def read_verdicts(task: str, completions: Mapping[int | str, str], asked: Asked) -> dict[int | str, bool]:
    """Whether each example that was asked was answered rightly, by id; `completions` of examples that were not asked
    are left out. Raises UserError where the data set is not there."""
    rows = _rows_by_id(task, asked.data_dir, asked.release)
    ids = list(rows) if asked.replayed is None else list(rows)[asked.replayed]
    return {name: RIGHT[task](completions[name], rows[name]) for name in ids if name in completions}


@cache
def _rows_by_id(task: str, data_dir: Path | None, release: str | None) -> dict[int | str, Mapping[str, Any]]:
    """The set in its order."""
    if task == livebench_typos.NAME:
        questions = load_questions(livebench_typos.CATEGORY, data_dir, release)
        return {row.fields["question_id"]: row.fields for row in questions if row.fields["task"] == task}
    module = {"gsm8k": gsm8k, "MATH": MATH}[task]
    return {example.id: example.row for example in module.TASK.load_examples(data_dir)}
