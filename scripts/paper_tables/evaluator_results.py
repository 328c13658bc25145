"""Where evaluators leave their results, and how they are read: answer by answer where they say so."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference_llms.tasks.livebench import JUDGMENTS
from scripts.paper_tables.judged_files import check_hashes, hashing_command
from utils.errors import UserError
from utils.json_files import read_json_lines, read_shaped_object

REMOVE = "remove it"


@dataclass(frozen=True)
class HarnessMetrics:
    """The part of bigcode-evaluation-harness's result that is read."""

    mbpp: dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """What an evaluator found: `score` as a share of `examples`, by `metric`. `values`: of each example, 0 to 1 and in
    the order of the file that was judged; None where the evaluator does not tell. `command`: the evaluator's that
    scored; empty where no program did, None where it was typed by hand."""

    metric: str
    score: float
    examples: int
    values: tuple[float, ...] | None = None
    command: str | None = None


def judged_values(metric: str, values: Sequence[float], command: str | None = None) -> Judged:
    return Judged(metric, sum(values) / len(values), len(values), tuple(float(value) for value in values), command)


def agreement_file(answers: Path) -> Path:
    """How many of the tiny models' answers agree exactly with the reference outputs."""
    return answers.with_name(f"{answers.name}_agreement.json")


def alpaca_eval_folder(answers: Path) -> Path:
    """What alpaca_eval is told to write to."""
    return answers.with_name(f"{answers.name}_alpaca_eval")


def program_results_file(programs: Path) -> Path:
    """What `evaluate_functional_correctness` writes beside its samples; for mbpp rows of the same form."""
    return programs.with_name(f"{programs.name}_results.jsonl")


def harness_metrics_file(programs: Path) -> Path:
    """What bigcode-evaluation-harness is told to write."""
    return programs.with_name(f"{programs.name}_harness.json")


def livebench_judgments(answers: Path) -> Path:
    """LiveBench's judgments of the answers in <task>/model_answer/<model id>.jsonl, in LiveBench's own place."""
    return answers.parent.parent / JUDGMENTS


def command_file(result: Path) -> Path:
    """The command that left a `result`, beside it."""
    return result.with_name(f"{result.name}.command")


def livebench_result(answers: Sequence[Path]) -> Path:
    """What the command and the hashes for one model's answers are named by: a file of judgments holds those of several
    models."""
    return livebench_judgments(answers[0]).with_name(answers[0].name)


def command_with_output(task: str, files: Sequence[Path], command: str) -> str:
    """The `command` of alpaca_eval or of the harness, with where its result is looked for."""
    if task == "alpaca_eval":
        return f"{command} --output_path {shlex.quote(str(alpaca_eval_folder(files[0])))}"
    return f"{command} --metric_output_path {shlex.quote(str(harness_metrics_file(files[0])))}"


def command_to_type(task: str, files: Sequence[Path], command: str) -> str:
    """The evaluator's `command`, with where its result is looked for, and with the hashes of what it judged where the
    result does not show that."""
    if task == "human_eval":
        return command
    if task == "alpaca_eval":
        return command_with_output(task, files, command)
    if task == "mbpp":
        hashing = hashing_command(harness_metrics_file(files[0]), files)
        return f"{command_with_output(task, files, command)} && {hashing}"
    return f"{command} && {hashing_command(livebench_result(files), files)}"


def read_alpaca_eval(answers: Path) -> Judged | None:
    """Agreement or a judge's win rate; None where neither is there."""
    rows = _json(answers)
    if agreement_file(answers).is_file():
        found = _json(agreement_file(answers))
        if found["outputs"] != [row["output"] for row in rows]:
            raise UserError(f"{agreement_file(answers)} is of other answers than {answers.name} now holds")
        check_hashes(agreement_file(answers), [answers])
        if not all(isinstance(agrees, bool) for agrees in found["agrees"]):
            raise UserError(f"{agreement_file(answers)}: holds other values than true and false; remove it")
        return judged_values("agreement", found["agrees"], command="")
    annotations = _newest(alpaca_eval_folder(answers), "annotations.json")
    if annotations is None:
        return None
    verdicts = {row["instruction"]: row for row in _json(annotations)}
    check_hashes(alpaca_eval_folder(answers), [answers])
    preferences = []
    for row in rows:
        verdict = verdicts.get(row["instruction"])
        if verdict is None or verdict.get("output_2") != row["output"]:
            raise UserError(f"{annotations} lacks an answer's judgment, or is of other answers than {answers.name}")
        preferences.append(_share_of_preference(verdict["preference"], annotations))
    return judged_values("win_rate", preferences, _text(command_file(alpaca_eval_folder(answers))))


def read_programs(task: str, programs: Path) -> Judged | None:
    """The programs that passed; None where no evaluator has judged them."""
    results = program_results_file(programs)
    if results.is_file():
        rows = read_json_lines(results, REMOVE)
        if [row["completion"] for row in rows] != [program for _, program in programs_of_file(task, programs)]:
            raise UserError(f"{results} is half-written, or of other programs than {programs.name} now holds")
        if not all(isinstance(row["passed"], bool) for row in rows):
            raise UserError(f"{results}: `passed` is neither true nor false; remove it, and the evaluator runs again")
        check_hashes(results, [programs])
        return judged_values("pass@1", [row["passed"] for row in rows], _text(command_file(results)))
    metrics = harness_metrics_file(programs)
    if task == "mbpp" and metrics.is_file():
        found = read_shaped_object(metrics, HarnessMetrics, f"{REMOVE}, and the harness runs again")
        if not check_hashes(metrics, [programs]):
            raise UserError(f"{metrics}: nothing shows which programs it judged; {REMOVE}, and the harness runs again")
        score, examples = _share(found["mbpp"].get("pass@1"), metrics), len(programs_of_file(task, programs))
        return Judged("pass@1", score, examples, command=_text(command_file(metrics)))
    return None


def programs_of_file(task: str, programs: Path) -> list[tuple[int | str, str]]:
    """The programs of a file that a run wrote: of human_eval by task id, of mbpp by position in the set."""
    if task == "human_eval":
        return [(row["task_id"], row["completion"]) for row in read_json_lines(programs, REMOVE)]
    return [(position, of_task[0]) for position, of_task in enumerate(_json(programs)) if of_task]


def read_livebench(answers: Sequence[Path]) -> Judged | None:
    """LiveBench's scores of the questions that were answered; None where it has judged none of these files."""
    values: list[float] = []
    for path in answers:
        judgments = livebench_judgments(path)
        if not judgments.is_file():
            continue
        rows = read_json_lines(path, REMOVE)
        scores = {
            row["question_id"]: _share(row["score"], judgments)
            for row in read_json_lines(judgments, REMOVE)
            if row["model"].lower() == rows[0]["model_id"].lower()  # LiveBench lower-cases ids
            # A judgment is never older than the answer it is of.
            and row["tstamp"] >= max(answer["tstamp"] for answer in rows)
        }
        missing = [row["question_id"] for row in rows if row["question_id"] not in scores]
        if scores and missing:
            raise UserError(f"{judgments} lacks {len(missing)} of the {len(rows)} answers in {path.name}")
        values += [scores[row["question_id"]] for row in rows if scores]
    if not values:
        return None
    if len(values) != sum(len(read_json_lines(path, REMOVE)) for path in answers):
        raise UserError(f"LiveBench has judged only {len(values)} of the answers of {answers[0].name}")
    check_hashes(livebench_result(answers), answers)
    return judged_values("livebench", values, _text(command_file(livebench_result(answers))))


def _share(value: Any, path: Path) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise UserError(
            f"{path}: a score is {value!r}, not a number from 0 to 1; {REMOVE}, and the evaluator runs again"
        )
    return float(value)


def _share_of_preference(preference: Any, path: Path) -> float:
    """1 for a win of ours, 0 for a loss, between them for a weighted preference or a draw."""
    if preference == 0:  # a draw, as older versions write it
        return 0.5
    if type(preference) not in (int, float) or not 1 <= preference <= 2:
        raise UserError(f"{path}: a preference is {preference!r}; the judge did not answer, ask it again")
    return preference - 1


def _newest(folder: Path, name: str) -> Path | None:
    return max(folder.rglob(name), key=lambda path: path.stat().st_mtime, default=None)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not whole ({error}); remove it") from error


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").rstrip("\n") if path.is_file() else None
