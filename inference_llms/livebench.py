"""LiveBench's questions, from where they lie, and answers in the form that its judge takes."""

import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

from inference_llms.data_sets import Row, check_rows, check_unique, load_from_hub, published_rows, read_rows
from inference_llms.task import Answers, Example
from utils.errors import UserError
from utils.output_places import OutputPlaces
from utils.whole_files import write_whole

FIELDS = {"question_id": str, "task": str, "turns": list}
# Where the tree of LiveBench's own files may begin below --data_dir.
ROOTS = (".", "live_bench", "livebench", "data/live_bench")
RELEASE = "2024-11-25"  # the paper's
JUDGE = "gen_ground_truth_judgment.py"  # LiveBench's script
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
    return [
        Example(id=row.fields["question_id"], prompt=row.fields["turns"][0], row={"task": row.fields["task"]})
        for row in rows
    ]


def judge_words(category: str, model_id: str, release: str, from_files: bool) -> list[str]:
    """LiveBench's judge and its options, for the answers of one model: of every other model in its folder it would ask
    that all is answered. `from_files`: the questions are those in its folder, not the hub's."""
    return [JUDGE, *_bench_words(category, release, from_files), "--model", model_id]


def judge_command(category: str, answers: Sequence[Path], release: str | None, questions: Mapping[str, Path]) -> str:
    """What to type in LiveBench's folder `livebench` for the scores of one model's files of `answers`. `questions`: as
    of `question_files`. It copies nothing over questions of LiveBench's that are others."""
    release = release or RELEASE
    folder = shlex.quote(str(answers[0].absolute().parents[2]))
    place = f"data/live_bench/{category}/$task"
    model_id = answers[0].name.removesuffix(".jsonl")
    copies = [f"mkdir -p {place}/model_answer"]
    if questions:
        ours = f"{shlex.quote(str(next(iter(questions.values())).absolute().parents[1]))}/$task/question.jsonl"
        theirs = f"{place}/question.jsonl"
        copies += [f"{{ [ -e {theirs} ] || cp {ours} {theirs}; }}", f"cmp {ours} {theirs}"]
    copies += [f"cp {folder}/$task/model_answer/{model_id}.jsonl {place}/model_answer"]
    tasks = " ".join(path.parents[1].name for path in answers)
    copy = f"(for task in {tasks}; do {' && '.join(copies)} || exit; done)"
    judge = judge_words(category, model_id, release, bool(questions))
    show = ["show_livebench_result.py", *_bench_words(category, release, bool(questions))]
    return " && ".join([f"ls {JUDGE}", copy, shlex.join(["python", *judge]), shlex.join(["python", *show])])


def judged_release(command: str) -> str:
    """The release that a command of `judge_command` names."""
    words = shlex.split(command)
    option = "--livebench-release-option"
    return words[words.index(option) + 1] if option in words else RELEASE


def question_files(category: str, data_dir: Path | None, answers: Sequence[Path]) -> dict[str, Path]:
    """The files in LiveBench's form that the questions of the files of `answers` come from, by task; none where they
    come from parquet files or the hub."""
    tasks = {path.parents[1].name for path in answers}
    files = [file for file in question_sources(category, data_dir) if file.suffix != ".parquet"]
    return {file.parent.name: file for file in files if file.parent.name in tasks}


def _bench_words(category: str, release: str, from_files: bool) -> list[str]:
    source = "jsonl" if from_files else "huggingface"
    words = ["--bench-name", f"live_bench/{category}", "--livebench-release-option", release]
    return [*words, "--question-source", source]


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
