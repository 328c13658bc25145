"""What the command lines of all scripts share."""

import argparse
from typing import NoReturn

from utils.errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """A parser that tells a wrong option in one line, as every other mistake is told."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")
