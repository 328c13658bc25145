"""LiveBench, coding: write or complete a program; LiveBench runs it on its tests."""

from collections.abc import Mapping
from typing import Any

from inference_llms.engines.engine import Sampling
from inference_llms.evaluators import livebench
from inference_llms.livebench_files import LiveBenchSet, livebench_task


def is_readable(completion: str, row: Mapping[str, Any]) -> bool:
    """Whether there is a program for LiveBench, which reads the text between two lines with ```."""
    return sum("```" in line for line in completion.split("\n")) >= 2


TASK = livebench_task(
    "coding",
    LiveBenchSet("coding"),
    livebench.PROGRAM_JUDGE,
    title="LiveBench-Coding",
    set_size=128,
    column=7,
    sampling=Sampling(max_tokens=2048),
    is_readable=is_readable,
)
