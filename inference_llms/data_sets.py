"""Read evaluation sets: from a file in --data_dir, else from where the set is published."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.content_hashes import unchanged
from utils.errors import UserError
from utils.json_files import parse_json_lines

JSON_TYPES = {str: "text", int: "a whole number", list: "a list", dict: "an object"}


@dataclass(frozen=True)
class Row:
    """One row and, for messages, the place it came from ("FILE line 3")."""

    place: str
    fields: dict[str, Any]


@dataclass(frozen=True)
class DataSet:
    """A set of examples: one file in --data_dir, or rows from where it is published.

    `files`: file names to look for; the first one found is used. `fields`: the fields of every row and their types.
    `load_published` returns the rows if there is no file. `id_field`: the field that identifies a row; rows are sorted
    by it. Without it, a row's id is its position. `check_row` raises UserError for other faults of a row.
    """

    files: tuple[str, ...]
    fields: dict[str, type]
    published_as: str
    load_published: Callable[[], Iterable[dict[str, Any]]]
    id_field: str | None = None
    check_row: Callable[[Row], None] = lambda row: None

    def files_in(self, data_dir: Path | None) -> list[Path]:
        """The set's file in a data folder, as a list of one or none."""
        return [] if data_dir is None else [data_dir / name for name in self.files if (data_dir / name).is_file()][:1]

    def load_rows(self, data_dir: Path | None, release: str | None = None) -> list[Row]:
        """All rows of the set, in its order. Only LiveBench's sets have releases.

        Raises UserError for a missing folder, a broken or empty file (naming the line), a missing field, a repeated
        id, and a published set that is not available.
        """
        check_data_dir(data_dir, self.files[0])
        for name in self.files if data_dir is not None else ():
            if (data_dir / name).is_dir():
                raise UserError(f"{data_dir / name} is a folder; put the set's file there")
        if files := self.files_in(data_dir):
            rows = read_rows(files[0], self.fields)
        else:
            rows = published_rows(self.published_as, self.load_published, self.files[0])
            check_rows(self.published_as, rows, self.fields)
        for row in rows:
            self.check_row(row)
        if self.id_field is not None:
            check_unique(rows, self.id_field)
            rows.sort(key=lambda row: row.fields[self.id_field])
        return rows


def check_data_dir(data_dir: Path | None, needed: str) -> None:
    """Raise UserError if --data_dir is not a folder."""
    if data_dir is not None and not data_dir.is_dir():
        raise UserError(f"--data_dir {data_dir} is not a folder; give one that holds {needed}")


def published_rows(published_as: str, load: Callable[[], Iterable[dict[str, Any]]], file: str) -> list[Row]:
    """The rows that `load` downloads. `file`: the file to use instead if that fails."""
    try:
        published = list(load())
    except Exception as error:
        # The loading libraries raise many unrelated errors (network, hub, cache, format), all with the same remedy.
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"cannot load {published_as} ({type(error).__name__}: {reason}); "
            f"put {file} into a folder and name it with --data_dir"
        ) from error
    return [Row(f"{published_as} row {number}", row) for number, row in enumerate(published, 1)]


def read_rows(path: Path, fields: dict[str, type], may_end_torn: bool = False) -> list[Row]:
    """The rows of a .json list, a .jsonl or a .jsonl.gz file; errors as in `DataSet.load_rows`.

    With `may_end_torn`, a last line of .jsonl that a kill cut off is skipped.
    """
    try:
        with unchanged([path]):
            if path.suffix == ".json":
                rows = read_json_list(path)
            else:
                opener = gzip.open if path.suffix == ".gz" else open
                with opener(path, "rt", encoding="utf-8-sig") as file:
                    lines = parse_json_lines(file, path, "fix or remove the line", may_end_torn)
                    rows = [Row(place, value) for place, value in lines]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}); replace it with the original file") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a complete gzip file ({error}); download it again") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}); check its permissions") from error
    check_rows(str(path), rows, fields)
    return rows


def read_json_list(path: Path) -> list[Row]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {error.lineno} is not JSON ({error.msg}); fix or replace the file") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply; replace it with the set's own file") from error
    if not isinstance(rows, list):
        raise UserError(f"{path} is not a JSON list of examples; replace it with the set's own file")
    return [Row(f"{path} row {number}", row) for number, row in enumerate(rows, 1)]


def check_rows(source: str, rows: Sequence[Row], fields: dict[str, type]) -> None:
    """Raise UserError unless there are rows, and each has the fields in their types."""
    if not rows:
        raise UserError(f"{source} holds no examples; replace it with the set's own file")
    for row in rows:
        if not isinstance(row.fields, dict):
            raise UserError(f"{row.place} is not a JSON object; fix or remove the line")
        for name, kind in fields.items():
            if name not in row.fields:
                raise UserError(f"{row.place} lacks the field {name!r}; add it or remove the line")
            value = row.fields[name]
            if not isinstance(value, kind) or isinstance(value, bool):
                raise UserError(f"{row.place}: the field {name!r} must be {JSON_TYPES[kind]}; fix the line")
        try:
            json.dumps(row.fields, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{row.place} holds half a surrogate pair, which is not text; fix the line") from error


def check_unique(rows: Sequence[Row], field: str) -> None:
    """Raise UserError if two rows have the same value in `field`."""
    first: dict[Any, str] = {}
    for row in rows:
        value = row.fields[field]
        if value in first:
            raise UserError(f"{row.place} repeats the {field} {value!r} of {first[value]}; remove one of the two")
        first[value] = row.place


def load_from_hub(*arguments: str, **options: str) -> list[dict[str, Any]]:
    """The rows that `datasets.load_dataset` returns for these arguments."""
    # Slow to import, and not needed if the sets are in --data_dir.
    from datasets import load_dataset
    from huggingface_hub.utils import logging

    # Without a network it prints two lines for each attempt, in addition to our line with the remedy.
    logging.set_verbosity_error()
    return load_dataset(*arguments, **options).to_list()
