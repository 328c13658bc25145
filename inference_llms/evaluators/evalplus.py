"""EvalPlus: HumanEval's and MBPP's programs on many more tests. Its files and commands; users run it themselves."""

import shlex
from collections.abc import Callable
from pathlib import Path

from inference_llms.evaluators.results import evaluator_program
from inference_llms.task import Answers
from utils.json_files import write_json_lines
from utils.output_places import OutputPlaces

HUMAN_EVAL_SIZE = 164
# Tasks of MBPP+ are among these, some outside the paper's test part; EvalPlus wants a program for each.
MBPP_IDS = range(2, 810)


def human_eval_command(answers: Answers, places: OutputPlaces, extract: Callable[[str], str]) -> str | None:
    """Write the programs with their prompts, as HumanEval joins them. Returns EvalPlus's command; None for a slice,
    which it refuses."""
    rows = [
        {"task_id": example.id, "solution": example.row["prompt"] + extract(completion)}
        for example, completion in zip(answers.examples, answers.completions, strict=True)
    ]
    file = _write(places.evalplus("human_eval"), rows)
    return _command("humaneval", file) if len(rows) == HUMAN_EVAL_SIZE else None


def mbpp_command(answers: Answers, places: OutputPlaces, extract: Callable[[str], str]) -> str | None:
    """Write the programs. Returns EvalPlus's command; None if tasks that it may want are missing."""
    rows = [
        {"task_id": f"Mbpp/{example.id}", "solution": extract(completion)}
        for example, completion in zip(answers.examples, answers.completions, strict=True)
    ]
    file = _write(places.evalplus("mbpp"), rows)
    attempted = {example.id for example in answers.examples}
    return _command("mbpp", file) if attempted.issuperset(MBPP_IDS) else None


def results_file(programs: Path) -> Path:
    """EvalPlus's results, which it writes beside the programs."""
    return programs.with_name(programs.name.replace(".jsonl", "_eval_results.json"))


def _write(file: Path, rows: list[dict[str, str]]) -> Path:
    before = file.read_bytes() if file.is_file() else None
    write_json_lines(file, rows)
    if file.read_bytes() != before:
        # EvalPlus repeats results that it finds, whatever programs they are of.
        results_file(file).unlink(missing_ok=True)
    return file.absolute()


def _command(dataset: str, file: Path) -> str:
    return shlex.join(
        [evaluator_program("evalplus.evaluate", "evalplus"), "--dataset", dataset, "--samples", str(file)]
    )
