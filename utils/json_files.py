"""JSON files that must hold an object, or one on each line."""

import json
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.stand_ins import stand_in_remedy


def read_json_object(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in `path`. Raises UserError, ending in the `remedy`, where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a byte order mark
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {remedy}") from None
    except (ValueError, OSError, RecursionError) as error:
        told = stand_in_remedy(path) if path.is_file() else None
        raise UserError(f"{path} {told or f'is not JSON ({error}); {remedy}'}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object; {remedy}")
    return value


def read_json_lines(path: Path, remedy: str) -> list[dict[str, Any]]:
    """The JSON object on each line of `path`. Raises UserError, ending in the `remedy`, where a line is none."""
    try:
        with open(path, encoding="utf-8") as file:  # str.splitlines would also split at U+2028, inside of texts
            rows = [json.loads(line) for line in file]
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} is not whole ({error}); {remedy}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} does not hold a JSON object on each line; {remedy}")
    return rows
