"""math-verify: whether two answers in LaTeX are equal, each comparison within limits of time and memory."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError

JUDGE = Path(__file__).with_name("judge_math.py")
SECONDS_PER_COMPARISON = 5.0  # most take 5 ms
MEMORY = 4 << 30


def are_equal(pairs: Sequence[tuple[str, str]], seconds: float = SECONDS_PER_COMPARISON) -> list[bool]:
    """Whether the two answers of each (gold, answer) pair are equal. Not equal: a pair that math-verify cannot compare
    in `seconds` and 4 GiB, or that crashes it.

    math-verify runs in one process, and in a new one after such a pair. Raises UserError if it cannot be imported.
    """
    verdicts, judge = [], None
    try:
        for pair in pairs:
            judge = judge or _start(seconds)
            verdict = _verdict(judge, pair)
            if verdict is None:
                _end(judge)
                judge = None
            verdicts.append(bool(verdict))
    finally:
        if judge is not None:
            _end(judge)
    return verdicts


def _start(seconds: float) -> subprocess.Popen:
    # -P: the judge's folder has files with the names of packages.
    words = [sys.executable, "-P", str(JUDGE), str(seconds), str(MEMORY)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    judge = subprocess.Popen(words, **pipes, text=True, encoding="utf-8")
    if judge.stdout.readline() != "ready\n":
        _end(judge)
        raise UserError("math-verify cannot be imported; install it again: pip install --force-reinstall math-verify")
    return judge


def _verdict(judge: subprocess.Popen, pair: tuple[str, str]) -> bool | None:
    """The judge's verdict on a pair; None if its process ended."""
    try:
        judge.stdin.write(f"{json.dumps(pair)}\n")
        judge.stdin.flush()
        line = judge.stdout.readline()
    except BrokenPipeError:
        return None
    return json.loads(line) if line else None


def _end(judge: subprocess.Popen) -> None:
    judge.kill()
    judge.communicate()
