"""End commands and their child processes on Ctrl-C, or when the parent process ends."""

import _signal  # not signal: importing it takes as long as starting Python, and until then Ctrl-C prints a traceback
import atexit
import os
import sys
from _collections_abc import Callable, Sequence  # loaded already, unlike collections.abc
from types import FrameType

INTERRUPTED = 130  # the exit status, as in a shell
TYPED = "MERGING_TYPED_COMMAND"  # environment variable with the command as typed, if a shell script started this one
PARENT = "MERGING_PARENT_PROCESS"  # environment variable with the process id of the parent, which a command ends with
_typed = os.environ.pop(TYPED, None)
_is_prepared = False
_is_interrupted = False
_is_reported = False
_progress: Callable[[], Sequence[str]] | None = None


class Interrupted(BaseException):
    """Ctrl-C during the work. Not a KeyboardInterrupt, which vLLM swallows while it starts."""


def prepare_process(name: str) -> None:
    """Prepare a process for Ctrl-C. Entry scripts call this before their imports, with their `__name__`.

    Ctrl-C during the imports then ends the command with one line. Processes started by multiprocessing import the entry
    script as `__mp_main__`: they ignore Ctrl-C and end when the command does.
    """
    global _is_prepared
    if name == "__mp_main__":
        _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
        _end_with(os.getppid())
    elif _signal.getsignal(_signal.SIGINT) != _signal.SIG_IGN:  # ignored for background jobs of a shell script
        _signal.signal(_signal.SIGINT, _end_now)
        _is_prepared = True
        # Called last at exit: Python then resets its handlers, and a late Ctrl-C would kill it silently.
        atexit.register(_signal.signal, _signal.SIGINT, _signal.SIG_IGN)
    if name != "__mp_main__" and _signal.getsignal(_signal.SIGTERM) == _signal.SIG_DFL:
        _signal.signal(_signal.SIGTERM, _terminate)
        # Blocked meanwhile: Python would forget a signal that reaches the child first.
        os.register_at_fork(before=_block_sigterm, after_in_parent=_unblock_sigterm, after_in_child=_default_sigterm)
    if name == "__main__":  # else multiprocessing skips a package's __main__
        sys.modules[name].__spec__ = None
    if PARENT in os.environ:
        _end_with(int(os.environ.pop(PARENT)))


def begin_work() -> None:
    """From now on, Ctrl-C raises Interrupted, so that the work can clean up; a second one ends the process."""
    if _is_prepared:
        _signal.signal(_signal.SIGINT, _interrupt)


def end_work() -> None:
    """From now on, Ctrl-C ends the process."""
    if _is_prepared:
        _signal.setitimer(_signal.ITIMER_REAL, 0)
        _signal.signal(_signal.SIGINT, _end_now)


def report_when_terminated(progress: Callable[[], Sequence[str]]) -> None:
    """From now on, SIGTERM prints these lines too, such as the hours used and left."""
    global _progress
    _progress = progress


def was_interrupted() -> bool:
    """Whether Ctrl-C was pressed since `begin_work`, even if a library swallowed the exception."""
    return _is_interrupted


def end_interrupted() -> int:
    """Report the interruption and end the process; if the process was not prepared, return the exit status."""
    from contextlib import suppress

    if not _is_prepared:
        _report_interrupt()
        return INTERRUPTED
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    _end_now()


def _interrupt(_number: int, frame: FrameType | None) -> None:
    global _is_interrupted
    _is_interrupted = True
    _report_interrupt()
    _signal.signal(_signal.SIGINT, _end_now)
    # Again until end_work: libraries swallow exceptions, and some moments are not safe.
    is_safe = not _is_importing_or_finalizing(frame)
    _signal.signal(_signal.SIGALRM, _interrupt)
    _signal.setitimer(_signal.ITIMER_REAL, 0.5 if is_safe else 0.05)
    if is_safe and not _is_cleaning_up():
        raise Interrupted


def _is_cleaning_up() -> bool:
    """Whether the code that was stopped now handles Interrupted, as in a `finally` block."""
    error = sys.exception()
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error is not None


def _is_importing_or_finalizing(frame: FrameType | None) -> bool:
    """Whether torch would abort, because an exception passes its import, or Python would ignore the exception."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>" or frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def _end_now(*_: object) -> None:
    """End without Python's own clean-up, which may wait for threads."""
    _report_interrupt()
    os._exit(INTERRUPTED)


def _terminate(*_: object) -> None:
    """Report SIGTERM, which batch systems send at the end of a job's time, and end by it, without clean-up."""
    _report_interrupt("terminated")
    _signal.signal(_signal.SIGTERM, _signal.SIG_IGN)  # sent twice, to a process and to its group
    try:
        os.write(2, "".join(f"{line}\n" for line in (_progress() if _progress else ())).encode())
    finally:  # the work may be in any state
        _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
        os.kill(os.getpid(), _signal.SIGTERM)


def _block_sigterm() -> None:
    _signal.pthread_sigmask(_signal.SIG_BLOCK, [_signal.SIGTERM])


def _unblock_sigterm() -> None:
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, [_signal.SIGTERM])


def _default_sigterm() -> None:
    """In a forked child: it is not the command, so it ends by SIGTERM without a line."""
    _signal.signal(_signal.SIGTERM, _signal.SIG_DFL)
    _unblock_sigterm()


def _report_interrupt(stop: str = "interrupted") -> None:
    global _is_reported
    if not _is_reported:
        # Not print: another print may hold the stream.
        os.write(2, f"{stop}; rerun the command and it resumes{_command()}\n".encode())
    _is_reported = True


def _command() -> str:
    """The command of this process, after a colon; nothing for one that does not fit into a line."""
    # Not shlex: nothing can be imported while a signal is handled.
    command = _typed or " ".join(map(_quoted, sys.orig_argv))
    return "" if "\n" in command else f": {command.strip()}"


def _quoted(word: str) -> str:
    if word and all(letter.isalnum() or letter in "@%+=:,./-_" for letter in word):
        return word
    return "'" + word.replace("'", "'\"'\"'") + "'"


def _end_with(parent: int) -> None:
    """Have the system kill this process when its parent ends (Linux only)."""
    import ctypes

    try:
        ctypes.CDLL(None).prctl(1, _signal.SIGKILL)  # PR_SET_PDEATHSIG
    except AttributeError:
        return
    if os.getppid() != parent:  # it has already ended
        os._exit(1)
