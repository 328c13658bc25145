"""LiveBench, typos (of the category language): correct the misspellings of a text; scored here."""

import re
from collections.abc import Mapping
from typing import Any

from inference_llms.engines.engine import Sampling
from inference_llms.livebench_files import LiveBenchSet, livebench_task

PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Text with errors:\n{text}\n\n### Response: the corrected paragraph is:"
)


def make_prompt(row: Mapping[str, Any]) -> str:
    """A question's instruction, which ends at its first blank line, and its text, in separate sections."""
    instruction, _, text = row["turns"][0].partition("\n\n")
    return PROMPT.format(instruction=instruction, text=text)


def is_right(completion: str, row: Mapping[str, Any]) -> bool:
    """The paper's rule: the ground truth occurs in the last line that is not empty."""
    lines = [line for line in completion.strip().split("\n") if line]
    return bool(lines) and row["ground_truth"] in lines[-1]


def is_right_for_livebench(completion: str, row: Mapping[str, Any]) -> bool:
    """LiveBench's own rule: the ground truth occurs in the last <solution>, or between dashes on a line, or else
    anywhere in the completion; lines are joined by a space."""
    solutions = re.findall(r"<solution>(.*?)</solution>", completion)
    if solutions:
        text = solutions[-1]
    else:
        text = completion.replace("<solution>", "").replace("</solution>", "")
        between_dashes = re.search(r".* --- (.*?) --- .*", text)
        text = between_dashes.group(1) if between_dashes else text
    return row["ground_truth"] in " ".join(line for line in text.strip().split("\n") if line)


TASK = livebench_task(
    "typos",
    LiveBenchSet("language", task="typos"),
    make_prompt=make_prompt,
    title="LiveBench-TypoFixing",
    set_size=50,
    column=8,
    sampling=Sampling(max_tokens=2048, stop=("The answer is:",)),
    metrics={"accuracy": is_right, "livebench_accuracy": is_right_for_livebench},
)
