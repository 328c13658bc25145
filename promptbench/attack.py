"""What an attack is: what it may make of a prompt. How the worst is found stands in search.py."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from promptbench.prompt_task import PromptTask
from promptbench.prompt_words import PromptWords


@dataclass(frozen=True)
class AttackParts:
    """What an attack may take to work with: the task, the seed of what is drawn, and models and files by path or
    hub id, None where the user has given none."""

    task: PromptTask
    seed: int = 0
    mask_lm: str = "bert-base-uncased"
    sentence_encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    word_vectors: Path | None = None


Constraint = Callable[[PromptWords, PromptWords, Sequence[PromptWords]], Sequence[bool]]


def anything_goes(clean: PromptWords, current: PromptWords, candidates: Sequence[PromptWords]) -> Sequence[bool]:
    """The constraint that holds for every candidate."""
    return [True] * len(candidates)


def both(first: Constraint, second: Constraint) -> Constraint:
    """The constraint that two hold; the second judges only what the first lets through."""

    def holds(clean: PromptWords, current: PromptWords, candidates: Sequence[PromptWords]) -> Sequence[bool]:
        held = first(clean, current, candidates)
        left = [candidate for candidate, holds_first in zip(candidates, held, strict=True) if holds_first]
        verdicts = iter(second(clean, current, left))
        return [holds_first and next(verdicts) for holds_first in held]

    return holds


@dataclass(frozen=True)
class WordAttack:
    """Changes one word after another, the most important first.

    `rank_by`: what a word's importance is measured by, its replacement by [UNK] or its deletion.
    `substitutes(prompt, index)`: what may stand for the word at `index`, without that word itself; the same for the
    same arguments. `holds(clean, current, candidates)`: which of the candidates, each one change away from `current`,
    are near enough to the clean or the current prompt.
    """

    rank_by: Literal["unk", "delete"]
    substitutes: Callable[[PromptWords, int], Sequence[str]]
    holds: Constraint = anything_goes


@dataclass(frozen=True)
class WholePromptAttack:
    """Scores each of `prompts(clean prompt)`, in that order, and takes the worst."""

    prompts: Callable[[PromptWords], Sequence[str]]


Attack = WordAttack | WholePromptAttack
