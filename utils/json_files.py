"""Read and write JSON files and JSON-lines files."""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, partial
from io import StringIO
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.stand_ins import stand_in_remedy
from utils.whole_files import write_whole


def read_json_object(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in `path`. Raises UserError, ending with the `remedy`, if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))  # some editors write a byte order mark
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {remedy}") from None
    except (ValueError, OSError, RecursionError) as error:
        stand_in = stand_in_remedy(path) if path.is_file() else None
        raise UserError(f"{path} {stand_in or f'is not JSON ({error}); {remedy}'}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object; {remedy}")
    return value


def read_shaped_object(path: Path, shape: type, remedy: str) -> dict[str, Any]:
    """The JSON object in `path`, checked as by `check_shape`."""
    value = read_json_object(path, remedy)
    check_shape(str(path), value, shape, remedy)
    return value


def short_json(value: Any) -> str:
    """A value as JSON of at most 60 characters, for messages."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def check_shape(place: str, value: Any, shape: Any, remedy: str) -> None:
    """Raise UserError, naming `place` and the first field at fault, unless a JSON value matches `shape`, a dataclass or
    another type. Extra fields are allowed; the character NUL is not."""
    from pydantic import ValidationError

    text = json.dumps(value)
    try:
        _validator(shape).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "value"
        raise UserError(f"{place}: {field}: {first['msg'][:1].lower()}{first['msg'][1:]}; {remedy}") from None
    if "\\u0000" in text:
        raise UserError(f"{place}: holds the character NUL; {remedy}")


@cache
def _validator(shape: Any):
    # Imported late, as most commands read no record.
    from pydantic import TypeAdapter

    return TypeAdapter(shape)


def read_json_lines(path: Path, remedy: str) -> list[dict[str, Any]]:
    """The JSON objects in `path`, one per line. Raises UserError, ending with the `remedy`, for any other line."""
    try:
        with open(path, encoding="utf-8") as file:  # str.splitlines would also split texts at U+2028
            rows = [value for _, value in parse_json_lines(file, path, remedy)]
    except (ValueError, OSError) as error:
        raise UserError(f"cannot read {path} ({error}); {remedy}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} does not have a JSON object on each line; {remedy}")
    return rows


def parse_json_lines(
    lines: Iterable[str | bytes], path: Path, remedy: str, may_end_torn: bool = False
) -> Iterator[tuple[str, Any]]:
    """The place ("FILE line 3") and value of each line that is not blank.

    Raises UserError, ending with the `remedy`, for a line that is not JSON. With `may_end_torn`, a last line that a
    kill cut off is skipped.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            if may_end_torn and line[-1:] not in ("\n", b"\n"):
                return
            raise UserError(f"{place} is not JSON ({error}); {remedy}") from error
        yield place, value


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]], ascii_only: bool = True) -> None:
    """Write each row as a line of JSON; in ASCII by default, because some evaluators open files in the system's
    encoding."""
    import jsonlines  # late, as most commands write no such file

    lines = StringIO()
    jsonlines.Writer(lines, dumps=partial(json.dumps, ensure_ascii=ascii_only, default=str)).write_all(rows)
    write_whole(path, lines.getvalue())
