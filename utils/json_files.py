"""JSON files that must hold an object."""

import json
from pathlib import Path
from typing import Any

from utils.errors import UserError


def read_json_object(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in `path`. Raises UserError, ending in the `remedy`, where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {remedy}") from None
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object; {remedy}")
    return value
