"""What the command lines of all scripts share."""

import argparse
import os
from pathlib import Path
from typing import NoReturn

from utils.errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports a wrong option in one line, as every other mistake is reported, and that replaces `~` in
    paths, which shells leave alone in quotes and in job files."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.register("type", Path, expanded_path)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def expanded_path(text: str) -> Path:
    """A path as typed, with the home folder in place of `~`."""
    return Path(os.path.expanduser(text))
