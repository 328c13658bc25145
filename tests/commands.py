"""Run commands in the process of the tests, which saves seconds of imports.

Other tests start each entry script as a separate process.
"""

import io
import subprocess
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout

from utils.errors import run_command_line


def run_here(main: Callable[[Sequence[str]], None], words: Sequence[object]) -> subprocess.CompletedProcess:
    """Run a command, given the words after its script's name."""
    arguments = [str(word) for word in words]
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = run_command_line(lambda: main(arguments))
        except SystemExit as ended:
            status = ended.code or 0
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())
