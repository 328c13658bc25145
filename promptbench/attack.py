"""Attacks: the changes to try on a prompt. `search.py` finds the most harmful one."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from promptbench.prompt_task import PromptTask
from promptbench.prompt_words import PromptWords
from utils.errors import UserError


class MissingPart(UserError):
    """An attack needs a missing model, file, package or paraphrase; the message says where to get it."""


@dataclass(frozen=True)
class AttackParts:
    """Everything an attack may use: the task, the seed, and models and files by path or hub id (None: not given)."""

    task: PromptTask
    seed: int = 0
    mask_lm: str = "bert-base-uncased"
    sentence_encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    word_vectors: Path | None = None


# Says which candidates are close enough to the clean or the current prompt. Arguments: the clean prompt, the current
# prompt, and the candidates, each one change away from the current prompt.
Constraint = Callable[[PromptWords, PromptWords, Sequence[PromptWords]], Sequence[bool]]


def accept_all(clean: PromptWords, current: PromptWords, candidates: Sequence[PromptWords]) -> Sequence[bool]:
    return [True] * len(candidates)


@dataclass(frozen=True)
class WordAttack:
    """Changes one word after another, the most important first.

    `rank_by`: a word's importance is the accuracy lost when it is replaced by [UNK] or deleted.
    `substitutes(prompt, index)`: replacements to try for the word at `index`; the same for the same arguments.
    `holds`: the constraint on candidates.
    """

    rank_by: Literal["unk", "delete"]
    substitutes: Callable[[PromptWords, int], Sequence[str]]
    holds: Constraint = accept_all


@dataclass(frozen=True)
class WholePromptAttack:
    """Scores each of `prompts(clean prompt)`, in that order, and takes the worst."""

    prompts: Callable[[PromptWords], Sequence[str]]


Attack = WordAttack | WholePromptAttack


def draws_for(seed: int, attack: str, prompt: str, index: int) -> random.Random:
    """A random generator for the word (or candidate) at `index` of a prompt.

    It depends on nothing else, so results do not change with the order in which prompts and words are tried.
    """
    return random.Random(repr((seed, attack, prompt, index)))
