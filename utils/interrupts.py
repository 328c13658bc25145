"""Ctrl-C, and the end of a parent process: how commands and the processes that they start end."""

import _signal  # not signal, whose imports take as long as the interpreter's start; until then Ctrl-C is a traceback
import atexit
import os
import sys
from types import FrameType

INTERRUPTED = 130  # the exit status, as in a shell
PARENT = "MERGING_PARENT_PROCESS"  # environment variable: the process with which a command ends
_is_prepared = False
_is_interrupted = False
_is_said = False


class Interrupted(BaseException):
    """Ctrl-C during the work. Not a KeyboardInterrupt, which vLLM swallows while it starts."""


def prepare_process(name: str) -> None:
    """Prepare a process for Ctrl-C; entry scripts call this before their imports, with their `__name__`.

    A Ctrl-C during the imports ends a command with one line. Processes that multiprocessing starts import the entry
    script as `__mp_main__`: they leave Ctrl-C to the command, and end with it however it ends.
    """
    global _is_prepared
    if name == "__mp_main__":
        _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
        _end_with(os.getppid())
    elif _signal.getsignal(_signal.SIGINT) != _signal.SIG_IGN:  # it is for a shell script's background jobs
        _signal.signal(_signal.SIGINT, _end_at_once)
        _is_prepared = True
        # Called last at exit. Python resets its handlers when it ends, and a late Ctrl-C would then kill it silently.
        atexit.register(_signal.signal, _signal.SIGINT, _signal.SIG_IGN)
    if name == "__main__":  # multiprocessing passes over a package's __main__ unless it knows it by its path
        sys.modules[name].__spec__ = None
    if PARENT in os.environ:
        _end_with(int(os.environ.pop(PARENT)))


def begin_work() -> None:
    """Let the next Ctrl-C raise Interrupted, so that the work can clean up, and a further one end the process."""
    if _is_prepared:
        _signal.signal(_signal.SIGINT, _interrupt)


def end_work() -> None:
    """Let the next Ctrl-C end the process."""
    if _is_prepared:
        _signal.setitimer(_signal.ITIMER_REAL, 0)
        _signal.signal(_signal.SIGINT, _end_at_once)


def was_interrupted() -> bool:
    """Whether a Ctrl-C came since `begin_work`, whatever a library made of the exception."""
    return _is_interrupted


def end_interrupted() -> int:
    """Say that the work was interrupted, and end the process; where it was not prepared, gives the exit status."""
    from contextlib import suppress

    if not _is_prepared:
        _say_interrupted()
        return INTERRUPTED
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    _end_at_once()


def _interrupt(_number: int, frame: FrameType | None) -> None:
    global _is_interrupted
    _is_interrupted = True
    _say_interrupted()
    _signal.signal(_signal.SIGINT, _end_at_once)
    if not _is_importing(frame):
        raise Interrupted
    # torch aborts when an exception passes through its start: once more when the import has ended.
    _signal.signal(_signal.SIGALRM, _interrupt)
    _signal.setitimer(_signal.ITIMER_REAL, 0.05)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != "<frozen importlib._bootstrap>":
        frame = frame.f_back
    return frame is not None


def _end_at_once(*_: object) -> None:
    """Without what Python does at its end, which may wait for threads."""
    _say_interrupted()
    os._exit(INTERRUPTED)


def _say_interrupted() -> None:
    global _is_said
    if not _is_said:
        # Not print: the signal may have come while another print holds the stream.
        os.write(2, b"interrupted; rerun the command and it resumes\n")
    _is_said = True


def _end_with(parent: int) -> None:
    """Have the system kill this process when its parent ends. Linux only; elsewhere it lives on."""
    import ctypes

    try:
        ctypes.CDLL(None).prctl(1, _signal.SIGKILL)  # PR_SET_PDEATHSIG
    except AttributeError:
        return
    if os.getppid() != parent:  # it ended before
        os._exit(1)
