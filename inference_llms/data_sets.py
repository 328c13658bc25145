"""Rows of evaluation sets: from a file in --data_dir, else from where the set is published."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.content_hashes import unchanged
from utils.errors import UserError

JSON_TYPES = {str: "text", int: "a whole number", list: "a list", dict: "an object"}


@dataclass(frozen=True)
class DataSet:
    """How a set is found: `files` are the names looked for in --data_dir (the first found wins),
    `fields` the fields that every row must have, `load_published` gets the rows where there is no file."""

    files: tuple[str, ...]
    fields: dict[str, type]
    published_as: str
    load_published: Callable[[], Iterable[dict[str, Any]]]


@dataclass(frozen=True)
class Row:
    """One row and, for messages, the place it came from ("FILE line 3")."""

    place: str
    fields: dict[str, Any]


def load_rows(data_set: DataSet, data_dir: Path | None) -> list[Row]:
    """All rows of a set, each with the set's fields in their types.

    Raises `UserError` for a folder that does not exist, a broken or empty file (with the line), a missing
    field, and a published set that cannot be had.
    """
    if data_dir is not None:
        if not data_dir.is_dir():
            raise UserError(f"--data_dir {data_dir} is not a folder; give one that holds {data_set.files[0]}")
        for name in data_set.files:
            if (data_dir / name).is_dir():
                raise UserError(f"{data_dir / name} is a folder; put the set's file there")
            if (data_dir / name).is_file():
                return read_rows(data_dir / name, data_set.fields)
    rows = published_rows(data_set.published_as, data_set.load_published, f"put {data_set.files[0]}")
    check_rows(data_set.published_as, rows, data_set.fields)
    return rows


def published_rows(published_as: str, load: Callable[[], Iterable[dict[str, Any]]], put: str) -> list[Row]:
    """The rows that `load` gets from where a set is published. `put` ("put FILE") begins the remedy where it cannot."""
    try:
        published = list(load())
    except Exception as error:
        # The loading libraries raise errors of a dozen unrelated kinds (network, hub, cache, format), and
        # the remedy is the same for all.
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"cannot load {published_as} ({type(error).__name__}: {reason}); "
            f"{put} into a folder and name it with --data_dir"
        ) from error
    return [Row(f"{published_as} row {number}", row) for number, row in enumerate(published, 1)]


def read_rows(path: Path, fields: dict[str, type], may_end_torn: bool = False) -> list[Row]:
    """The rows of a .json list, a .jsonl or a .jsonl.gz file; errors as in `load_rows`.

    With `may_end_torn`, a last line of .jsonl that a kill cut off is passed over.
    """
    try:
        with unchanged([path]):
            rows = read_json_list(path) if path.suffix == ".json" else read_json_lines(path, may_end_torn)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}); replace it by the original file") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file ({error}); download it again") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}); check its permissions") from error
    check_rows(str(path), rows, fields)
    return rows


def read_json_list(path: Path) -> list[Row]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {error.lineno} is not JSON ({error.msg}); mend or replace the file") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply; replace it by the set's own file") from error
    if not isinstance(rows, list):
        raise UserError(f"{path} holds no JSON list of examples; replace it by the set's own file")
    return [Row(f"{path} row {number}", row) for number, row in enumerate(rows, 1)]


def read_json_lines(path: Path, may_end_torn: bool = False) -> list[Row]:
    """One row for each line that is not blank."""
    rows = []
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                rows.append(Row(f"{path} line {number}", json.loads(line)))
            except (ValueError, RecursionError) as error:
                if may_end_torn and not line.endswith("\n"):
                    break
                raise UserError(f"{path} line {number} is not JSON ({error}); mend or remove the line") from error
    return rows


def check_rows(source: str, rows: Sequence[Row], fields: dict[str, type]) -> None:
    """Raise `UserError` unless there are rows, and each has the fields in their types."""
    if not rows:
        raise UserError(f"{source} holds no examples; replace it by the set's own file")
    for row in rows:
        if not isinstance(row.fields, dict):
            raise UserError(f"{row.place} is not a JSON object; mend or remove the line")
        for name, kind in fields.items():
            if name not in row.fields:
                raise UserError(f"{row.place} lacks the field {name!r}; add it or remove the line")
            value = row.fields[name]
            if not isinstance(value, kind) or isinstance(value, bool):
                raise UserError(f"{row.place}: the field {name!r} must be {JSON_TYPES[kind]}; mend the line")
        try:
            json.dumps(row.fields, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{row.place} holds half a surrogate pair, which is no text; mend the line") from error


def check_unique(rows: Sequence[Row], field: str) -> None:
    """Raise `UserError` where two rows have the same value in `field`."""
    first: dict[Any, str] = {}
    for row in rows:
        value = row.fields[field]
        if value in first:
            raise UserError(f"{row.place} has the {field} {value!r} of {first[value]}; remove one of the two")
        first[value] = row.place


def load_from_hub(*arguments: str, **options: str) -> list[dict[str, Any]]:
    """The rows that `datasets.load_dataset` gives for these arguments."""
    # Slow to import, and of no use to a run whose sets lie in --data_dir.
    from datasets import load_dataset
    from huggingface_hub.utils import logging

    # Without a network it would print two lines for each of its attempts, beside the one line that tells.
    logging.set_verbosity_error()
    return load_dataset(*arguments, **options).to_list()
