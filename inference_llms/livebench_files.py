"""LiveBench's questions, from its own files or the hub, and answers in the form that its judge reads."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from inference_llms.data_sets import (
    Row,
    check_data_dir,
    check_rows,
    check_unique,
    load_from_hub,
    published_rows,
    read_rows,
)
from inference_llms.task import Answers, Evaluator, Task
from utils.errors import UserError
from utils.json_files import write_json_lines
from utils.output_places import OutputPlaces

FIELDS = {"question_id": str, "task": str, "turns": list}
# Folders below --data_dir that may hold the tree of LiveBench's files.
ROOTS = (".", "live_bench", "livebench", "data/live_bench")
DATES = ("livebench_release_date", "livebench_removal_date", "release_date")
_ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"  # shortuuid's: no two look alike
_ID_LENGTH = 22
QUESTIONS = "questions"  # the folder of the answered questions, beside model_answer


@dataclass(frozen=True)
class LiveBenchSet:
    """The questions of a LiveBench category. With `task`: only those of that task, which have a ground truth."""

    category: str
    task: str | None = None
    id_field = "question_id"

    @property
    def files(self) -> tuple[str, ...]:
        return (f"{self.category}/<task>/question.jsonl",)

    def files_in(self, data_dir: Path | None) -> list[Path]:
        """The category's files in a data folder: LiveBench's tree (<category>/<task>/question.jsonl), else parquet
        files (below <category>, or <category>*.parquet)."""
        for root in ROOTS if data_dir is not None else ():
            place, name = data_dir / root, self.category
            if files := sorted(place.glob(f"{name}/*/question.jsonl")):
                return files
            if files := sorted([*place.glob(f"{name}/**/*.parquet"), *place.glob(f"{name}*.parquet")]):
                return files
        return []

    def load_rows(self, data_dir: Path | None, release: str | None = None) -> list[Row]:
        """The questions in `data_dir`, else on the hub, in `release` (YYYY-MM-DD; None: in any).

        Raises UserError for a faulty file, naming the line.
        """
        rows = self._read(data_dir)
        check_rows(f"livebench/{self.category}", rows, FIELDS)
        for row in rows:
            _check_question(row)
        check_unique(rows, self.id_field)
        if release is not None:
            rows = [row for row in rows if _is_in(row, release)]
            if not rows:
                raise UserError(f"--livebench_release {release} has no question of {self.category}; remove the option")
        return rows if self.task is None else self._of_task(rows)

    def _read(self, data_dir: Path | None) -> list[Row]:
        check_data_dir(data_dir, f"{self.category}/*/question.jsonl")
        if files := self.files_in(data_dir):
            return [
                row
                for file in files
                for row in (_parquet_rows(file) if file.suffix == ".parquet" else read_rows(file, FIELDS))
            ]
        name = f"livebench/{self.category}"
        files = f"{self.files[0]} or {self.category}.parquet"
        return published_rows(name, lambda: load_from_hub(name, split="test"), files)

    def _of_task(self, rows: list[Row]) -> list[Row]:
        rows = [row for row in rows if row.fields["task"] == self.task]
        if not rows:
            raise UserError(
                f"no question of the category {self.category} has the task {self.task}; use the whole category's file"
            )
        for row in rows:
            truth = row.fields.get("ground_truth")
            if not isinstance(truth, str) or not truth.strip():
                raise UserError(f"{row.place}: the field 'ground_truth' must be text; fix or remove the line")
        return rows


def first_turn(row: Mapping[str, Any]) -> str:
    return row["turns"][0]


def livebench_task(
    name: str,
    data_set: LiveBenchSet,
    evaluator: Evaluator | None = None,
    make_prompt: Callable[[Mapping[str, Any]], str] = first_turn,
    make_answer: Callable[[str], str] = str,
    **fields: Any,
) -> Task:
    """A task on LiveBench's questions. `make_answer(completion)` is the answer in LiveBench's files."""

    def write_files(answers: Answers, places: OutputPlaces) -> tuple[Path, ...]:
        """Write the answers, one file for each of LiveBench's tasks, and the questions beside them if a judge reads
        both. Returns the files of answers."""
        rows: dict[Path, list[dict[str, Any]]] = {}
        model_id = places.livebench_id
        for example, completion, time in zip(answers.examples, answers.completions, answers.times, strict=True):
            path = places.livebench_answers(name, data_set.category, example.row["task"])
            row = {
                "question_id": example.id,
                "answer_id": answer_id(model_id, str(example.id), time),
                "model_id": model_id,
                "choices": [{"index": 0, "turns": [make_answer(completion)]}],
                "tstamp": time,
            }
            rows.setdefault(path, []).append(row)
            if evaluator is not None:
                question = {**example.row, **question_dates(example.row)}
                rows.setdefault(questions_file(path), []).append(question)
        for path, of_file in rows.items():
            write_json_lines(path, of_file, ascii_only=path.parent.name == QUESTIONS)
        return tuple(path for path in rows if path.parent.name != QUESTIONS)

    def check_files(times: Mapping[int | str, float] | None, places: OutputPlaces) -> None:
        """Raise UserError if the model id cannot name a file, or a file of this id holds answers with other times."""
        model_id = places.livebench_id
        if not _is_file_name(model_id):
            raise UserError(f"--model_id {model_id!r} cannot name a file; use letters, digits, '.', '-', '_'")
        folder = places.livebench_category(name, data_set.category)
        for path in folder.glob(f"*/model_answer/{model_id}.jsonl") if times is not None else ():
            for row in read_rows(path, {"question_id": str, "answer_id": str}):
                question = row.fields["question_id"]
                if question not in times or row.fields["answer_id"] != answer_id(model_id, question, times[question]):
                    raise UserError(
                        f"{path} holds the answers of another model or run; choose another --model_id or --output_dir, "
                        "or replace them with --overwrite"
                    )

    return Task(
        name=name,
        data_set=data_set,
        make_prompt=make_prompt,
        make_question=first_turn,
        evaluator=evaluator,
        write_files=write_files,
        check_files=check_files,
        **fields,
    )


def answer_id(model_id: str, question_id: str, time: float) -> str:
    """An id of LiveBench's form (22 letters and digits) that stays the same for one answer."""
    number = int.from_bytes(hashlib.sha256(f"{model_id}\n{question_id}\n{time!r}".encode()).digest())
    letters = []
    for _ in range(_ID_LENGTH):
        number, digit = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[digit])
    return "".join(letters)


def questions_file(answers: Path) -> Path:
    """The file of the questions that a file of answers belongs to."""
    return answers.parents[1] / QUESTIONS / answers.name


def question_dates(row: Mapping[str, Any]) -> dict[str, str]:
    """A question's dates as LiveBench writes them."""
    return {name: "" if row[name] is None else _day(row[name]) for name in DATES if name in row}


def _day(value: Any) -> str:
    return value.strftime("%Y-%m-%d") if isinstance(value, date | datetime) else str(value)


def _check_question(row: Row) -> None:
    turns = row.fields["turns"]
    if not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise UserError(f"{row.place}: the question has no turns; each must be text, fix or remove the line")
    if not _is_file_name(row.fields["task"]):
        raise UserError(f"{row.place}: the task {row.fields['task']!r} cannot name a folder; fix the line")


def _parquet_rows(file: Path) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{file} is not a complete parquet file ({error}); download it again") from error
    rows = [Row(f"{file} row {number}", row) for number, row in enumerate(table.to_pylist(), 1)]
    check_rows(str(file), rows, FIELDS)
    return rows


def _is_in(row: Row, release: str) -> bool:
    """Whether a question was published by `release` and not yet removed."""
    for name in DATES[:2]:
        if not isinstance(row.fields.get(name), str | date | datetime):
            raise UserError(f"{row.place} lacks the date {name!r}; add it, or remove --livebench_release")
    published, removed = (_day(row.fields[name]) for name in DATES[:2])
    return published <= release and (removed == "" or removed > release)


def _is_file_name(name: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*", name) is not None
