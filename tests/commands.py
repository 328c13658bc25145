"""Commands of a shell, run in the tests' own process, which has loaded its packages: seconds sooner.

Each entry script has tests that start it as a separate process, too.
"""

import io
import subprocess
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout

from utils.errors import run_command_line


def run_here(main: Callable[[Sequence[str]], None], words: Sequence[object]) -> subprocess.CompletedProcess:
    """What a command says and ends with, given the words after its script's name."""
    typed = [str(word) for word in words]
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = run_command_line(lambda: main(typed))
        except SystemExit as ended:
            status = ended.code or 0
    return subprocess.CompletedProcess(typed, status, out.getvalue(), err.getvalue())
