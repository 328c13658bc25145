"""What a search is made of: candidate merges, what they answered, and how well."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from inference_llms.answer_health import Health, health_of
from model_merging_methods.merge_parameters import MergeParameters
from utils.intervals import wilson_interval

VALIDATION, TEST = "validation", "test"
Part = Literal["validation", "test"]
Kind = Literal["draw", "equal", "plain", "finetuned"]


@dataclass(frozen=True)
class Candidate:
    """One merge of a search.

    `kind`: a draw; at equal ratios; plain, without M3; or a fine-tuned model alone, as a merge at ratio 1. `name` tells
    it apart in one search (`draw 7`, `equal ratios`, `without M3`, `math alone`). `parameters` hold the ratios as given
    ones, so that they make the merge again; `alpha` is what they were drawn with, None where nothing was.
    """

    name: str
    kind: Kind
    parameters: MergeParameters
    alpha: float | None = None


@dataclass(frozen=True)
class Answer:
    """A completion of one example of a task, by its id, and whether it is right. `time` in seconds since 1970.

    cut_off: whether the limit of tokens ended it. readable: whether it holds what the task looks for. None: not known,
    or a task that takes any text.
    """

    example: int | str
    completion: str
    right: bool
    time: float
    cut_off: bool | None = None
    readable: bool | None = None


def health_of_answers(answers: Sequence[Answer]) -> Health:
    """The health of a candidate's answers to one task."""
    readable = [answer.readable for answer in answers]
    cut_off = [answer.cut_off for answer in answers]
    return health_of([answer.completion for answer in answers], cut_off, None if None in readable else readable)


@dataclass(frozen=True)
class Result:
    """How many examples of a part of a task a candidate answered rightly. `seconds`: what answering took; `time` in
    seconds since 1970."""

    candidate: str
    task: str
    part: Part
    examples: int
    right: int
    seconds: float
    time: float

    @property
    def score(self) -> float:
        return self.right / self.examples

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the score (Wilson)."""
        return wilson_interval(self.right, self.examples)
