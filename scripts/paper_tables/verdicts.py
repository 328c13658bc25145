"""Which examples a run answered rightly, read again from its raw completions: what paired comparisons are made of."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from inference_llms.command_line import add_inference_options
from inference_llms.tasks import TASKS
from scripts.paper_tables.commands import ROOT
from utils.command_line import OneLineParser


def rule_for_one_answer(task: str) -> Callable[[str, Mapping[str, Any]], bool] | None:
    """Whether a completion is right, by the example's row; None of a task that needs an evaluator or is not known."""
    return TASKS[task].is_right if task in TASKS else None


@dataclass(frozen=True)
class Asked:
    """The examples whose answers a run scored: the folder of their set, LiveBench's release, and of a replay the slice
    of the set. A run scores every completion that is there, `replayed` being None."""

    data_dir: Path | None
    release: str | None
    replayed: slice | None


def asked_by(record: Mapping[str, Any], command: str) -> Asked:
    """Of a task's record and the command that was typed, empty where that is not known: the folder stands in the
    record, since a command may be typed anywhere. Raises UserError where the command is none of an entry script."""
    parser = OneLineParser(allow_abbrev=False, add_help=False)
    add_inference_options(parser)
    parser.add_argument("--livebench_release")
    options, _ = parser.parse_known_args(shlex.split(command))
    data_dir = record.get("data_dir", options.data_dir)
    replayed = slice(options.start_index, options.end_index) if options.backend == "replay" else None
    return Asked(None if data_dir is None else ROOT / data_dir, options.livebench_release, replayed)


def read_verdicts(task: str, completions: Mapping[int | str, str], asked: Asked) -> dict[int | str, bool]:
    """Whether each example that was asked was answered rightly, by id; `completions` of examples that were not asked
    are left out. Raises UserError where the data set is not there."""
    is_right, rows = rule_for_one_answer(task), _rows_by_id(task, asked.data_dir, asked.release)
    ids = list(rows) if asked.replayed is None else list(rows)[asked.replayed]
    return {name: is_right(completions[name], rows[name]) for name in ids if name in completions}


@cache
def _rows_by_id(task: str, data_dir: Path | None, release: str | None) -> dict[int | str, Mapping[str, Any]]:
    """The set in its order."""
    return {example.id: example.row for example in TASKS[task].load_examples(data_dir, release)}
