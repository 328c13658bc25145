"""Mistakes that a user can make, told in one line."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can put right.

    The message is one line: it names the file, tensor or option at fault and says what to do.
    """


def run_command_line(main: Callable[[], None]) -> int:
    """Run `main`, turning a `UserError` into one line on stderr.

    An `OSError` that came this far is told in the same way. Returns the exit status: 0, 2 after such an error
    (as argparse does), 130 after Ctrl-C.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that may not be written
        place = "" if error.filename is None else f"{error.filename}: "
        print(f"error: {place}{error.strerror or error}; mend that and type the command again", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command takes up where this one stopped", file=sys.stderr)
        return 130
    return 0
