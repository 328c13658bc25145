"""LiveBench, instruction following: rewrite a newspaper text under several constraints; LiveBench judges."""

from collections.abc import Mapping
from typing import Any

from inference_llms.engines.engine import Sampling
from inference_llms.evaluators import livebench
from inference_llms.livebench_files import LiveBenchSet, livebench_task


def make_answer(completion: str) -> str:
    """The part of a completion that is judged: without answer marks, then stripped of punctuation, newlines and white
    space, in this order and once each."""
    return completion.replace("The answer is:", "").strip(".,!?;: ").strip("\n").strip()


def is_readable(completion: str, row: Mapping[str, Any]) -> bool:
    return make_answer(completion) != ""


TASK = livebench_task(
    "instruction_following",
    LiveBenchSet("instruction_following"),
    livebench.TEXT_JUDGE,
    make_answer=make_answer,
    title="LiveBench-Instruction",
    set_size=200,
    column=6,
    sampling=Sampling(max_tokens=2048),
    is_readable=is_readable,
)
