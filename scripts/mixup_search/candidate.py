"""What a search is made of: candidate merges, what they answered, and how well."""

from dataclasses import dataclass
from typing import Literal

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
    """A completion of one example of a task, by its id, and whether it is right. `time` in seconds since 1970."""

    example: int | str
    completion: str
    right: bool
    time: float


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
