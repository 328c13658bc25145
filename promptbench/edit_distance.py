"""The limit on how far an attacked prompt may be from the clean one, in typed characters."""

from collections.abc import Sequence

from promptbench.attack import Constraint
from promptbench.prompt_words import PromptWords


def edit_distance(first: str, second: str) -> int:
    """The Levenshtein distance: the fewest characters to insert, delete or replace to make one text the other."""
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
