"""LiveBench's own judgments of instruction following and coding."""

import importlib.util
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from inference_llms.evaluators.guard import EVALUATOR_LIMITS, GuardedCommandError, LimitError, Places, run_guarded
from inference_llms.tasks.livebench import (
    JUDGE,
    JUDGMENTS,
    bench_name,
    judge_words,
    judged_releases,
    log_folder,
    questions_file,
)
from scripts.paper_tables.evaluator_results import command_file, livebench_judgments, livebench_result, read_livebench
from scripts.paper_tables.judged_files import keep_hash_lines
from scripts.paper_tables.to_judge import ToJudge, each, hashes_to_judge, run_evaluator
from utils.errors import UserError
from utils.json_files import read_json_lines
from utils.whole_files import write_whole

CATEGORIES = ("instruction_following", "coding")
RUNS_PROGRAMS = "coding"
SECONDS = 7200


def judge_livebench(category: str, items: Sequence[ToJudge]) -> dict[str, str]:
    """Judge the answers of each model; returns why some were not, by key."""
    folder = livebench_folder()
    if folder is None:
        note = "LiveBench is not installed, and LIVEBENCH_DIR does not name its folder `livebench`"
    elif not (folder / JUDGE).is_file():
        note = f"{folder} holds no {JUDGE}; let LIVEBENCH_DIR name LiveBench's folder `livebench`"
    else:
        return each(items, lambda item: _judge(category, item, folder))
    return {item.key: note for item in items}


def livebench_folder() -> Path | None:
    """The folder of LiveBench's scripts, where it is installed."""
    named = os.environ.get("LIVEBENCH_DIR")
    if named is not None:
        return Path(named).absolute()
    found = importlib.util.find_spec("livebench")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations)))


def _judge(category: str, item: ToJudge, folder: Path) -> None:
    """Have LiveBench judge one model, from a folder of ours: LiveBench's own `data` stays as it is."""
    hashes = hashes_to_judge(item)
    model_id = item.files[0].name.removesuffix(".jsonl")
    commands = [judge_words(category, model_id, release) for release in judged_releases(item.command)]
    run = partial(_run, folder, category, model_id, commands)
    answered = [answered_question for path in item.files for answered_question in _answered_questions(path)]
    judgments = _judged_apart(run, answered) if category == RUNS_PROGRAMS else run(answered)
    for path in item.files:
        ids = {answered_question.id for answered_question in answered if answered_question.task == path.parents[1].name}
        _keep_judgments([row for row in judgments if row["question_id"] in ids], path, model_id)
    keep_hash_lines(livebench_result(item.files), hashes)
    if read_livebench(item.files) is None:
        raise UserError(f"{JUDGE} ended well and left no judgment of {item.files[0]}")
    typed = " && ".join(shlex.join(["python", *words]) for words in commands)
    write_whole(command_file(livebench_result(item.files)), f"{typed}\n")


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question of one of LiveBench's tasks and a model's answer, as rows of LiveBench's files."""

    task: str
    question: Mapping[str, Any]
    answer: Mapping[str, Any]

    @property
    def id(self) -> str:
        return self.question["question_id"]


def _answered_questions(answers: Path) -> list[AnsweredQuestion]:
    remedy = "run the command of its answers again"
    if not questions_file(answers).is_file():
        raise UserError(f"{questions_file(answers)}, the questions of {answers.name}, is missing; {remedy}")
    questions = {row["question_id"]: row for row in read_json_lines(questions_file(answers), remedy)}
    rows = read_json_lines(answers, remedy)
    return [AnsweredQuestion(answers.parents[1].name, questions[row["question_id"]], row) for row in rows]


def _run(
    folder: Path, category: str, model_id: str, commands: Sequence[Sequence[str]], answered: Sequence[AnsweredQuestion]
) -> list[dict[str, Any]]:
    """LiveBench's judgments of these answers, by its `commands`."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch, "data", bench_name(category, model_id))
        for task in dict.fromkeys(one.task for one in answered):
            of_task = [one for one in answered if one.task == task]
            Path(scratch, log_folder(category, task)).mkdir(parents=True)
            _write_rows(place / task / "question.jsonl", [one.question for one in of_task])
            _write_rows(place / task / "model_answer" / f"{model_id}.jsonl", [one.answer for one in of_task])
        variables = {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder.parent), os.environ.get("PYTHONPATH"))))}
        for script, *options in commands:
            words = [sys.executable, str(folder / script), *options]
            if category == RUNS_PROGRAMS:
                places = Places(readable=(folder,), scratch=Path(scratch))
                run_guarded(words, SECONDS, EVALUATOR_LIMITS, places, variables=variables)
            else:
                run_evaluator(words, Path(scratch), variables)
        files = sorted(place.glob(f"*/{JUDGMENTS}"))
        rows = [row for file in files for row in read_json_lines(file, "see what LiveBench left there")]
    return rows


def _judged_apart(
    run: Callable[[Sequence[AnsweredQuestion]], list[dict[str, Any]]], answered: Sequence[AnsweredQuestion]
) -> list[dict[str, Any]]:
    """The judgments that `run` gives. A batch that it fails on is halved until the program at fault is alone, with the
    score 0."""
    try:
        return run(answered)
    except GuardedCommandError as error:
        if len(answered) > 1:
            middle = len(answered) // 2
            return _judged_apart(run, answered[:middle]) + _judged_apart(run, answered[middle:])
        if not isinstance(error, LimitError):  # which may be LiveBench's fault
            raise
        (one,) = answered
        model = one.answer["model_id"].lower()
        return [{"question_id": one.id, "task": one.task, "model": model, "score": 0, "turn": 1, "tstamp": time.time()}]


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _keep_judgments(found: Sequence[Mapping[str, Any]], answers: Path, model_id: str) -> None:
    """Put LiveBench's judgments of one model among those of our other models."""
    target = livebench_judgments(answers)
    before = read_json_lines(target, "remove it") if target.is_file() else []
    rows = [row for row in before if row["model"].lower() != model_id.lower()]
    write_whole(target, "".join(json.dumps(row) + "\n" for row in (*rows, *found)))
