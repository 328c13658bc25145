"""The recorded attacks in tests/golden/attacks, a prompt to attack, and a model with made-up accuracies."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from promptbench.prompt_task import PromptTask

GOLDEN = Path(__file__).parents[1] / "golden" / "attacks"
RELEASE = "0.3.7"

# A prompt like those of the tasks, short enough to work through by hand.
PROMPT = "Judge 'good' or 'bad'.\nText:{content}\nPlease say 'good' or 'bad'."
TASK = PromptTask("made_up", PROMPT, {"good": 1, "bad": 0}, ("{content}: good or bad?",), lambda data_dir: [])
PROTECTED = TASK.protected_words


def golden(name: str, part: str) -> list[dict]:
    """The records of a part of a file that hold for the release whose words we use."""
    records = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))[part]
    return [record for record in records if RELEASE in record["releases"]]


class Model:
    """A made-up accuracy for each prompt, and the calls that scored them."""

    def __init__(self, accuracy: Callable[[str], float]):
        self.accuracy = accuracy
        self.calls: list[list[str]] = []

    def score(self, prompts: Sequence[str]) -> list[float]:
        self.calls.append(list(prompts))
        return [self.accuracy(prompt) for prompt in prompts]

    @property
    def prompts(self) -> list[str]:
        return [prompt for call in self.calls for prompt in call]
