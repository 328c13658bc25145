"""LiveBench's judge of instruction following and of programs."""

import importlib.util
import os
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from inference_llms.evaluators.guard import EVALUATOR_LIMITS, GuardedCommandError, LimitError, Places, run_guarded
from inference_llms.evaluators.results import (
    EVALUATORS,
    Verdicts,
    check_hashes,
    checked_share,
    evaluator_program,
    installed_program,
    read_command,
    run_evaluator,
    verdicts_of,
)
from inference_llms.livebench_files import question_dates, questions_file
from inference_llms.task import AnswerFiles, Answers, Evaluator
from utils.errors import UserError
from utils.json_files import read_json_lines, write_json_lines
from utils.output_places import OutputPlaces

RELEASE = "2024-11-25"  # the paper's
RELEASES = ("2024-06-24", "2024-07-26", "2024-08-31", RELEASE)  # in LiveBench's code of February 2025
FOLDER = EVALUATORS.parent / "LiveBench" / "livebench"
SCRIPT = "gen_ground_truth_judgment.py"
JUDGMENTS = "model_judgment/ground_truth_judgment.jsonl"  # its output, in a task's folder
PROGRAM_SECONDS = 7200

Row = Mapping[str, Any]


# The printed command


def make_command(answers: Answers, files: Sequence[Path], places: OutputPlaces) -> str:
    """The command that has LiveBench judge one model's files of answers, for LiveBench's folder `livebench`. It
    copies the answered questions and the answers there, judges them, release by release, and appends the judgments to
    those beside the answers."""
    category, model_id = category_and_model(files)
    ours = f"{shlex.quote(str(files[0].absolute().parents[2]))}/$task"
    theirs = f"data/{bench_name(category, model_id)}/$task"
    copies = [
        f"mkdir -p {theirs}/model_answer {log_folder(category, '$task')} {ours}/model_judgment",
        f"cp {ours}/questions/{model_id}.jsonl {theirs}/question.jsonl",
        f"cp {ours}/model_answer/{model_id}.jsonl {theirs}/model_answer",
    ]
    releases = [answers.release] if answers.release else releases_of(example.row for example in answers.examples)
    tasks = " ".join(path.parents[1].name for path in files)
    python = evaluator_program("python", "livebench")
    # Where scripts/setup_evaluators.sh put LiveBench; else the user goes to its folder.
    installed = [f"cd {shlex.quote(str(FOLDER))}", "export PYTHONPATH=.."] if FOLDER.is_dir() else []
    return " && ".join(
        [
            *installed,
            f"ls {SCRIPT}",
            f"rm -rf data/{bench_name(category, model_id)}",  # left by an earlier command, maybe with other tasks
            f"(for task in {tasks}; do {' && '.join(copies)} || exit; done)",
            *(shlex.join([python, *judge_words(category, model_id, release)]) for release in releases),
            f"(for task in {tasks}; do cat {theirs}/{JUDGMENTS} >> {ours}/{JUDGMENTS} || exit; done)",
        ]
    )


def category_and_model(files: Sequence[Path]) -> tuple[str, str]:
    """The category and the model id of files <category>/<task>/model_answer/<model id>.jsonl."""
    return files[0].parents[2].name, files[0].name.removesuffix(".jsonl")


def judge_words(category: str, model_id: str, release: str) -> list[str]:
    """The command of LiveBench's judge for one model's answers, which are alone in `bench_name` below `data`."""
    words = [SCRIPT, "--bench-name", bench_name(category, model_id), "--livebench-release-option", release]
    return [*words, "--question-source", "jsonl", "--model", model_id]


def bench_name(category: str, model_id: str) -> str:
    """The folder of one model's answers. LiveBench reads the category from its name."""
    return f"m3_{model_id}/{category}"


def log_folder(category: str, task: str) -> str:
    """The folder where the judge of instruction_following always logs its work. It must exist."""
    return f"data/live_bench/{category}/{task}/model_judgment"


def releases_of(questions: Iterable[Row]) -> list[str]:
    """The newest releases that have these questions. LiveBench skips questions that are not in the chosen release."""
    return sorted({_newest_release(question_dates(row)) for row in questions})


def _newest_release(dates: Mapping[str, str]) -> str:
    if not {"livebench_release_date", "livebench_removal_date"} <= dates.keys():
        return RELEASE
    published, removed = dates["livebench_release_date"], dates["livebench_removal_date"]
    releases = [release for release in RELEASES if published <= release and (removed == "" or removed > release)]
    return max(releases, default=published)


# Running the judge


class AnsweredQuestion(NamedTuple):
    """A question of one of LiveBench's tasks and a model's answer, as rows of LiveBench's files."""

    task: str
    question: Row
    answer: Row


def livebench_folder() -> Path:
    """The folder of LiveBench's scripts. Raises UserError if LiveBench is not installed."""
    configured, package = os.environ.get("LIVEBENCH_DIR"), importlib.util.find_spec("livebench")
    if configured is None and package is not None and package.submodule_search_locations:
        configured = next(iter(package.submodule_search_locations))
    elif configured is None and FOLDER.is_dir():
        configured = FOLDER
    if configured is None:
        raise UserError(
            "LiveBench is not installed, and LIVEBENCH_DIR does not name its folder `livebench`; run "
            "`bash scripts/setup_evaluators.sh livebench`"
        )
    folder = Path(configured).absolute()
    if not (folder / SCRIPT).is_file():
        raise UserError(f"{folder} holds no {SCRIPT}; set LIVEBENCH_DIR to LiveBench's folder `livebench`")
    check_code(folder)
    return folder


def check_code(folder: Path) -> None:
    """Raise UserError if LiveBench's code knows releases after the last one with public questions: it would stop on
    these questions."""
    listing = folder / "common.py"
    line = re.search(r"^LIVE_BENCH_RELEASES = .*", listing.read_text() if listing.is_file() else "", re.MULTILINE)
    newest = max(re.findall(r"\d{4}-\d\d-\d\d", line[0] if line else ""), default=RELEASE)
    if newest > RELEASE:
        raise UserError(
            f"{folder} is LiveBench's code for release {newest}, which stops on the public questions; remove it and "
            "run `bash scripts/setup_evaluators.sh livebench`"
        )


def call(runs_programs: bool, answers: AnswerFiles) -> tuple[Path, str]:
    """Have LiveBench judge one model in a separate folder, so that LiveBench's own `data` does not change."""
    files, folder = answers.files, livebench_folder()
    category, model_id = category_and_model(files)
    answered = [item for path in files for item in answered_questions(path)]
    releases = [answers.release] if answers.release else releases_of(item.question for item in answered)
    commands = [judge_words(category, model_id, release) for release in releases]
    judge = partial(judge_in_scratch_folder, folder, category, model_id, commands, runs_programs)
    judgments = judge_by_halves(judge, answered) if runs_programs else judge(answered)
    for path in files:
        ids = {item.answer["question_id"] for item in answered if item.task == path.parents[1].name}
        # The file may hold judgments of other models.
        kept = read_json_lines(judgments_file(path), "remove it") if judgments_file(path).is_file() else []
        kept = [row for row in kept if row["model"].lower() != model_id.lower()]
        write_json_lines(judgments_file(path), [*kept, *(row for row in judgments if row["question_id"] in ids)])
    if read_result(files) is None:
        raise UserError(f"{SCRIPT} succeeded but left no judgment of {files[0]}")
    return result_name(files), " && ".join(shlex.join(["python", *words]) for words in commands)


def answered_questions(answers: Path) -> list[AnsweredQuestion]:
    remedy = "rerun the command of its answers"
    if not questions_file(answers).is_file():
        raise UserError(f"{questions_file(answers)}, the questions of {answers.name}, is missing; {remedy}")
    questions = {row["question_id"]: row for row in read_json_lines(questions_file(answers), remedy)}
    rows = read_json_lines(answers, remedy)
    return [AnsweredQuestion(answers.parents[1].name, questions[row["question_id"]], row) for row in rows]


def judge_in_scratch_folder(
    folder: Path,
    category: str,
    model_id: str,
    commands: Sequence[Sequence[str]],
    runs_programs: bool,
    answered: Sequence[AnsweredQuestion],
) -> list[dict[str, Any]]:
    """LiveBench's judgments of these answers, by its `commands`, in a temporary folder."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch, "data", bench_name(category, model_id))
        for task in dict.fromkeys(item.task for item in answered):
            rows = [row for row in answered if row.task == task]
            Path(scratch, log_folder(category, task)).mkdir(parents=True)
            write_json_lines(place / task / "question.jsonl", [row.question for row in rows])
            write_json_lines(place / task / "model_answer" / f"{model_id}.jsonl", [row.answer for row in rows])
        variables = {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder.parent), os.environ.get("PYTHONPATH"))))}
        python = installed_program("python", "livebench")
        for script, *options in commands:
            words = [python, str(folder / script), *options]
            if runs_programs:
                places = Places(readable=(folder.parent, EVALUATORS / "livebench"), scratch=Path(scratch))
                run_guarded(words, PROGRAM_SECONDS, EVALUATOR_LIMITS, places, variables=variables)
            else:
                run_evaluator(words, Path(scratch), variables)
        files = sorted(place.glob(f"*/{JUDGMENTS}"))
        return [row for file in files for row in read_json_lines(file, "see what LiveBench wrote there")]


def judge_by_halves(
    judge: Callable[[Sequence[AnsweredQuestion]], list[dict[str, Any]]], answered: Sequence[AnsweredQuestion]
) -> list[dict[str, Any]]:
    """The judgments of `judge`. If it fails, the batch is halved until the faulty program is alone; that scores 0."""
    try:
        return judge(answered)
    except GuardedCommandError as error:
        if len(answered) > 1:
            middle = len(answered) // 2
            return judge_by_halves(judge, answered[:middle]) + judge_by_halves(judge, answered[middle:])
        if not isinstance(error, LimitError):  # which may be LiveBench's fault
            raise
        (item,) = answered
        row = {"question_id": item.answer["question_id"], "task": item.task, "model": item.answer["model_id"].lower()}
        return [{**row, "score": 0, "turn": 1, "tstamp": time.time()}]


# Reading its judgments


def judgments_file(answers: Path) -> Path:
    """LiveBench's judgments of the answers in <task>/model_answer/<model id>.jsonl, where LiveBench puts them."""
    return answers.parent.parent / JUDGMENTS


def result_name(files: Sequence[Path]) -> Path:
    """The name for the command and the hashes of one model's answers: a file of judgments holds several models."""
    return judgments_file(files[0]).with_name(files[0].name)


def read_result(files: Sequence[Path]) -> Verdicts | None:
    """LiveBench's scores of the answered questions."""
    if not any(judgments_file(path).is_file() for path in files):
        return None
    answered = {path: read_json_lines(path, "remove it") for path in files}
    scores: dict[str, float] = {}
    for path, rows in answered.items():
        judgments = judgments_file(path)
        judged = {
            row["question_id"]: checked_share(row["score"], judgments)
            for row in (read_json_lines(judgments, "remove it") if judgments.is_file() else [])
            if row["model"].lower() == rows[0]["model_id"].lower()  # LiveBench lower-cases ids
            # A judgment is never older than its answer.
            and row["tstamp"] >= max(answer["tstamp"] for answer in rows)
        }
        missing = [row["question_id"] for row in rows if row["question_id"] not in judged]
        if judged and missing:
            raise UserError(f"{judgments} lacks {len(missing)} of the {len(rows)} answers in {path.name}")
        scores |= judged
    ids = [row["question_id"] for rows in answered.values() for row in rows]
    values = [scores[name] for name in ids if name in scores]
    if not values:
        return None
    if len(values) != len(ids):
        raise UserError(f"LiveBench has judged only {len(values)} of the answers of {files[0].name}")
    check_hashes(result_name(files), files)
    return verdicts_of("livebench", ids, values, read_command(result_name(files)))


TEXT_JUDGE, PROGRAM_JUDGE = (
    Evaluator("LiveBench", runs_programs, make_command, result_name, partial(call, runs_programs), read_result)
    for runs_programs in (False, True)
)
