"""Command-line parsing shared by all scripts."""

import argparse
import os
from pathlib import Path
from typing import Any, NoReturn

from utils.errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports a wrong option in one line and expands `~` in paths, which shells do not do in quotes and
    job files."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.register("type", Path, expanded_path)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def expanded_path(text: str) -> Path:
    """A path with `~` expanded."""
    return Path(os.path.expanduser(text))


def whole_number(text: str) -> int:
    number = _integer(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative; give 0 or more")
    return number


def positive_number(text: str) -> int:
    number = _integer(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is too small; give 1 or more")
    return number


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from error


def options_on_record(options: argparse.Namespace) -> dict[str, Any]:
    """The options of a command as data for a record: name to value, without None values, and with paths as text."""
    return {name: _as_json(value) for name, value in sorted(vars(options).items()) if value is not None}


def _as_json(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value
