"""Compare answers with math-verify: read [gold, answer] in LaTeX from each line of stdin, as JSON, and print whether
they are equal. Runs in its own process, which the kernel ends if a comparison takes too long.

Usage: python -P judge_math.py SECONDS_PER_COMPARISON BYTES_OF_MEMORY
"""

import json
import logging
import re
import resource
import signal
import sys
from contextlib import suppress

from math_verify import LatexExtractionConfig, parse, verify

MATH_SPAN = re.compile(r"(?<!\\)\$|\\\(|\\\[")


def is_equal(gold: str, answer: str) -> bool:
    # Without math-verify's own time limits, which cannot interrupt a long operation on integers.
    return verify(
        *(parse(as_latex(text), [LatexExtractionConfig()], parsing_timeout=None) for text in (gold, answer)),
        timeout_seconds=None,
    )


def as_latex(text: str) -> str:
    """The text with its mathematics marked, as math-verify looks for it."""
    return text if MATH_SPAN.search(text) else f"\\boxed{{{text}}}"


if __name__ == "__main__":
    seconds, memory = float(sys.argv[1]), int(sys.argv[2])
    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    verdicts, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    print("ready", file=verdicts, flush=True)
    for line in sys.stdin:
        verdict = False
        signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM without a handler ends the process
        with suppress(Exception):
            verdict = is_equal(*json.loads(line))
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(verdict), file=verdicts, flush=True)
