"""LiveBench's questions, from where they lie, and answers in the form that its judge takes."""

import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from inference_llms.data_sets import Row, check_rows, check_unique, load_from_hub, published_rows, read_rows
from inference_llms.tasks.task import Answers, Example
from utils.errors import UserError
from utils.output_places import OutputPlaces
from utils.whole_files import write_whole

FIELDS = {"question_id": str, "task": str, "turns": list}
# Where the tree of LiveBench's own files may begin below --data_dir.
ROOTS = (".", "live_bench", "livebench", "data/live_bench")
RELEASE = "2024-11-25"  # the paper's
RELEASES = ("2024-06-24", "2024-07-26", "2024-08-31", RELEASE)  # those of LiveBench's code of February 2025
DATES = ("livebench_release_date", "livebench_removal_date", "release_date")
JUDGE = "gen_ground_truth_judgment.py"  # LiveBench's script
JUDGMENTS = "model_judgment/ground_truth_judgment.jsonl"  # what it writes, in a task's folder
_ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"  # shortuuid's: no two look alike
_ID_LENGTH = 22


def load_questions(
    category: str, data_dir: Path | None, release: str | None = None, fields: dict[str, type] | None = None
) -> list[Row]:
    """The questions of a category: from `data_dir`, as LiveBench's tree (<category>/<task>/question.jsonl) or as
    parquet files (below <category>, or <category>*.parquet), else from the hub's livebench/<category>.

    `release` (YYYY-MM-DD) leaves those that were out by then and not removed yet. `fields` must be there beside a
    question's own. Raises UserError for whatever is wrong with a file, naming the line.
    """
    rows = _rows(category, data_dir)
    check_rows(f"livebench/{category}", rows, {**FIELDS, **(fields or {})})
    for row in rows:
        turns = row.fields["turns"]
        if not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
            raise UserError(f"{row.place}: the question has no turns; each must be text, mend or remove the line")
        if not _is_file_name(row.fields["task"]):
            raise UserError(f"{row.place}: the task {row.fields['task']!r} cannot name a folder; mend the line")
    check_unique(rows, "question_id")
    if release is not None:
        rows = [row for row in rows if _is_in(row, release)]
        if not rows:
            raise UserError(f"--livebench_release {release}: no question of {category} belongs to it; leave it out")
    return rows


def write_answers(
    answers: Answers, texts: Sequence[str], places: OutputPlaces, evaluate_task: str, category: str, model_id: str
) -> tuple[Path, ...]:
    """Write `texts`, one for each answered question, in LiveBench's model_answer form: a file for each of its tasks.
    Returns the files."""
    rows_of_task: dict[str, list[dict[str, Any]]] = {}
    for example, text, time in zip(answers.examples, texts, answers.times, strict=True):
        row = {
            "question_id": example.id,
            "answer_id": answer_id(model_id, str(example.id), time),
            "model_id": model_id,
            "choices": [{"index": 0, "turns": [text]}],
            "tstamp": time,
        }
        rows_of_task.setdefault(example.row["task"], []).append(row)
    files = []
    for task, rows in rows_of_task.items():
        path = places.livebench_answers(evaluate_task, category, task, model_id)
        write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        files.append(path)
    return tuple(files)


def check_own_answers(
    evaluate_task: str, category: str, model_id: str, times: Mapping[int | str, float], places: OutputPlaces
) -> None:
    """Raise UserError where a file of this model id holds answers other than those given at `times`, by question."""
    for path in places.livebench_category(evaluate_task, category).glob(f"*/model_answer/{model_id}.jsonl"):
        for row in read_rows(path, {"question_id": str, "answer_id": str}):
            time = times.get(row.fields["question_id"])
            if time is None or row.fields["answer_id"] != answer_id(model_id, row.fields["question_id"], time):
                raise UserError(
                    f"{path} holds the answers of another model or run; choose another --model_id or --output_dir, or "
                    "replace them with --overwrite"
                )


def answer_id(model_id: str, question_id: str, time: float) -> str:
    """An id of LiveBench's form (22 letters and digits) that stays the same for one answer."""
    number = int.from_bytes(hashlib.sha256(f"{model_id}\n{question_id}\n{time!r}".encode()).digest())
    letters = []
    for _ in range(_ID_LENGTH):
        number, digit = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[digit])
    return "".join(letters)


def check_model_id(model_id: str) -> None:
    """Raise UserError for an id that cannot name the file of its answers."""
    if not _is_file_name(model_id):
        raise UserError(f"--model_id {model_id!r} cannot name a file; use letters, digits, '.', '-', '_'")


def first_turns(rows: Iterable[Row]) -> list[Example]:
    """Questions asked bare, by their first turn."""
    return [Example(id=row.fields["question_id"], prompt=row.fields["turns"][0], row=row.fields) for row in rows]


def write_questions(answers: Sequence[Path], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the answered questions beside the files of `answers`, in the form that LiveBench's judge reads."""
    for path in answers:
        of_task = [row for row in rows if row["task"] == path.parents[1].name]
        lines = [json.dumps({**row, **_dates(row)}, default=_date_text) + "\n" for row in of_task]
        write_whole(questions_file(path), "".join(lines))


def questions_file(answers: Path) -> Path:
    """The questions that a file of answers is to."""
    return answers.parents[1] / "questions" / answers.name


def judge_words(category: str, model_id: str, release: str) -> list[str]:
    """LiveBench's judge and its options, for one model's answers in a folder of LiveBench's `data` that has nothing
    else in it."""
    words = [JUDGE, "--bench-name", bench_name(category, model_id), "--livebench-release-option", release]
    return [*words, "--question-source", "jsonl", "--model", model_id]


def bench_name(category: str, model_id: str) -> str:
    """That folder. LiveBench goes by the category in its name."""
    return f"m3_{model_id}/{category}"


def log_folder(category: str, task: str) -> str:
    """Where the judge of instruction_following logs its work, whatever folder its questions are in. It must exist."""
    return f"data/live_bench/{category}/{task}/model_judgment"


def judge_command(category: str, answers: Sequence[Path], releases: Sequence[str]) -> str:
    """The command that has LiveBench judge one model's files of `answers`, for LiveBench's folder `livebench`. It
    copies the answered questions and the answers there, judges them, release by release, and appends the judgments to
    those beside the answers."""
    model_id = answers[0].name.removesuffix(".jsonl")
    ours = f"{shlex.quote(str(answers[0].absolute().parents[2]))}/$task"
    theirs = f"data/{bench_name(category, model_id)}/$task"
    copies = [
        f"rm -rf {theirs}",  # what an earlier command left
        f"mkdir -p {theirs}/model_answer {log_folder(category, '$task')} {ours}/model_judgment",
        f"cp {ours}/questions/{model_id}.jsonl {theirs}/question.jsonl",
        f"cp {ours}/model_answer/{model_id}.jsonl {theirs}/model_answer",
    ]
    judges = [shlex.join(["python", *judge_words(category, model_id, release)]) for release in releases]
    tasks = " ".join(path.parents[1].name for path in answers)
    return " && ".join(
        [
            f"ls {JUDGE}",
            f"(for task in {tasks}; do {' && '.join(copies)} || exit; done)",
            *judges,
            f"(for task in {tasks}; do cat {theirs}/{JUDGMENTS} >> {ours}/{JUDGMENTS} || exit; done)",
        ]
    )


def judged_releases(command: str) -> list[str]:
    """The releases that a command of `judge_command` names."""
    words = shlex.split(command)
    return [release for word, release in pairwise(words) if word == "--livebench-release-option"]


def releases_of(rows: Sequence[Mapping[str, Any]], release: str | None) -> list[str]:
    """The releases that together have all of these questions: `release` where one was asked for, else for each question
    the newest that has it. LiveBench leaves out whatever is not of the release that it is called with."""
    if release is not None:
        return [release]
    return sorted({_newest_release(row) for row in rows})


def _newest_release(row: Mapping[str, Any]) -> str:
    dates = _dates(row)
    if not {"livebench_release_date", "livebench_removal_date"} <= dates.keys():
        return RELEASE
    out, removed = dates["livebench_release_date"], dates["livebench_removal_date"]
    having = [release for release in RELEASES if out <= release and (removed == "" or removed > release)]
    return max(having, default=out)


def _dates(row: Mapping[str, Any]) -> dict[str, str]:
    """A question's dates as LiveBench writes them."""
    return {name: _date_text("" if row[name] is None else row[name], "%Y-%m-%d") for name in DATES if name in row}


def _date_text(value: Any, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    return value.strftime(form) if isinstance(value, date | datetime) else str(value)


def _rows(category: str, data_dir: Path | None) -> list[Row]:
    if data_dir is not None:
        if not data_dir.is_dir():
            raise UserError(f"--data_dir {data_dir} is not a folder; give one that holds {category}/*/question.jsonl")
        if files := question_sources(category, data_dir):
            return [
                row
                for file in files
                for row in (_parquet_rows(file) if file.suffix == ".parquet" else read_rows(file, FIELDS))
            ]
    return published_rows(
        f"livebench/{category}",
        lambda: load_from_hub(f"livebench/{category}", split="test"),
        f"put {category}/<task>/question.jsonl or {category}.parquet",
    )


def question_sources(category: str, data_dir: Path | None) -> list[Path]:
    """The files of a category's questions, all of one form; none where they come from the hub."""
    for root in ROOTS if data_dir is not None else ():
        place = data_dir / root
        if files := sorted(place.glob(f"{category}/*/question.jsonl")):
            return files
        if files := sorted([*place.glob(f"{category}/**/*.parquet"), *place.glob(f"{category}*.parquet")]):
            return files
    return []


def _parquet_rows(file: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{file} is not a whole parquet file ({error}); download it again") from error
    rows = [Row(f"{file} row {number}", row) for number, row in enumerate(table.to_pylist(), 1)]
    check_rows(str(file), rows, FIELDS)
    return rows


def _is_in(row: Row, release: str) -> bool:
    """Whether a question was out at `release` and not removed by then."""
    out, removed = (_day(row, field) for field in ("livebench_release_date", "livebench_removal_date"))
    return out <= release and (removed == "" or removed > release)


def _day(row: Row, field: str) -> str:
    value = row.fields.get(field)
    if isinstance(value, date | datetime):
        return value.strftime("%Y-%m-%d")
    if not isinstance(value, str):
        raise UserError(f"{row.place} lacks the date {field!r}; add it, or leave out --livebench_release")
    return value


def _is_file_name(name: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*", name) is not None
