"""Errors that a user can fix, each reported in one line."""

import os
import select
import sys
from collections.abc import Callable

from utils.interrupts import begin_work, end_interrupted, end_work, was_interrupted

STDOUT = 1
READER_GONE = 141  # the exit status, as in a shell


class UserError(Exception):
    """An error that the user can fix.

    The message is one line: it names the file, tensor or option at fault and says what to do.
    """


def run_command_line(main: Callable[[], None]) -> int:
    """Run `main` and report a `UserError` or an uncaught `OSError` in one line on stderr.

    Returns the exit status: 0, 2 after such an error (as argparse does), 130 after Ctrl-C, or 141 if stdout is a pipe
    whose reader has ended.
    """
    begin_work()
    # transformers prints warnings that only programmers can act on. It reads this variable when it is imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        status = _run(main)
        return end_interrupted() if was_interrupted() else status
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or was_interrupted():  # libraries turn it into other errors
            return end_interrupted()
        raise
    finally:
        end_work()


def _run(main: Callable[[], None]) -> int:
    try:
        main()
    except (UserError, OSError) as error:
        if was_interrupted():
            raise
        if isinstance(error, BrokenPipeError) and _is_reader_gone():
            return READER_GONE
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _is_reader_gone() -> bool:
    """Whether the program that reads stdout has ended, such as `head`; the rest of the output is then dropped."""
    waits = select.poll()
    waits.register(STDOUT, select.POLLOUT)
    if not any(event & select.POLLERR for _, event in waits.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
    return True


def _one_line(error: UserError | OSError) -> str:
    if isinstance(error, UserError):
        return " ".join(str(error).splitlines())  # quoted names may contain line breaks
    place = "" if error.filename is None else f"{error.filename}: "  # a full disk, a read-only folder
    return f"{place}{error.strerror or error}; fix this and rerun"
