"""Character edits of a word, and a limit on the edit distance to the clean prompt."""

import json
from collections.abc import Sequence
from pathlib import Path

from promptbench.attack import Constraint
from promptbench.prompt_words import PromptWords

# Small letters, digits, - and ', each with the look-alike that TextAttack 0.3.7 writes for it.
HOMOGLYPHS: dict[str, str] = json.loads(Path(__file__).with_name("homoglyphs.json").read_text(encoding="utf-8"))


def swap_letters(word: str, place: int) -> str:
    """The word with the letters at `place` (0: the first) and after it exchanged."""
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def substitute_letter(word: str, place: int, letter: str) -> str:
    return word[:place] + letter + word[place + 1 :]


def delete_letter(word: str, place: int) -> str:
    return word[:place] + word[place + 1 :]


def insert_letter(word: str, place: int, letter: str) -> str:
    """The word with one more letter, before the one at `place`."""
    return word[:place] + letter + word[place:]


def with_homoglyphs(word: str) -> list[str]:
    """The word with one character replaced by its look-alike, for each character that has one, in order."""
    return [
        substitute_letter(word, place, HOMOGLYPHS[letter]) for place, letter in enumerate(word) if letter in HOMOGLYPHS
    ]


def edit_distance(first: str, second: str) -> int:
    """The Levenshtein distance: the fewest insertions, deletions and replacements that turn one text into the other."""
    while first and second and first[0] == second[0]:
        first, second = first[1:], second[1:]
    while first and second and first[-1] == second[-1]:
        first, second = first[:-1], second[:-1]
    # distances[j]: from the characters of `first` so far to the first j of `second`.
    distances = list(range(len(second) + 1))
    for number, old in enumerate(first, start=1):
        diagonal, distances[0] = distances[0], number
        for place, new in enumerate(second, start=1):
            replaced = diagonal + (old != new)
            diagonal = distances[place]
            distances[place] = min(replaced, diagonal + 1, distances[place - 1] + 1)
    return distances[-1]


def within_edit_distance(limit: int) -> Constraint:
    """The constraint that a candidate is at most `limit` edits away from the clean prompt."""

    def holds(clean: PromptWords, current: PromptWords, candidates: Sequence[PromptWords]) -> Sequence[bool]:
        return [edit_distance(clean.text, candidate.text) <= limit for candidate in candidates]

    return holds
