"""Health of a run's answers: how many are empty, cut off, repetitive or unreadable, or all the same."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

# A fault is shown if more than this share of the answers has it.
SHOWN_ABOVE = 0.1
# Equal answers are normal for a task with two labels, but not almost all of them.
SAME_SHOWN_ABOVE = 0.9
# A text repeats itself if it ends in at least this many copies of one piece, over at least this many characters. None
# of 8,900 texts of the evaluation sets (questions, references, programs) does: the longest such ending has 75.
COPIES = 3
REPEATED_CHARACTERS = 100


@dataclass(frozen=True)
class Health:
    """The number of `answers` with each fault. One answer may have several.

    empty: only white space. cut_off: ended by max_tokens or by the model's context; None if a completion does not say.
    repeating: the same text over and over until the end. unreadable: without the number, expression, program or label
    that the task looks for; None if the task takes any text. same: the largest number of equal answers.
    """

    answers: int
    empty: int
    cut_off: int | None
    repeating: int
    unreadable: int | None
    same: int

    def warning(self) -> str | None:
        """A line with each fault of more than one answer in ten; None without such a fault."""
        faults = {
            "empty": self.empty,
            "cut off at the token limit": self.cut_off,
            "repeating the same text to the end": self.repeating,
            "without a readable answer": self.unreadable,
        }
        shown = [f"{count} {fault}" for fault, count in faults.items() if (count or 0) > SHOWN_ABOVE * self.answers]
        # A single answer equals itself, and empty answers are counted above.
        if 1 < self.same > max(SAME_SHOWN_ABOVE * self.answers, self.empty):
            shown.append(f"{self.same} equal")
        return f"of {self.answers} answers: {', '.join(shown)}" if shown else None


def health_of(texts: Sequence[str], cut_off: Sequence[bool | None], readable: Sequence[bool] | None) -> Health:
    """The health of completions. `cut_off` and `readable` have one value per completion."""
    return Health(
        answers=len(texts),
        empty=sum(not text.strip() for text in texts),
        cut_off=None if None in cut_off else sum(cut_off),
        repeating=sum(map(repeats_itself, texts)),
        unreadable=None if readable is None else len(readable) - sum(readable),
        same=max(Counter(text.strip() for text in texts).values(), default=0),
    )


def total(healths: Sequence[Health]) -> Health:
    """The health of the answers of several runs, added up."""
    sums = {}
    for field in fields(Health):
        counts = [getattr(health, field.name) for health in healths]
        sums[field.name] = None if None in counts else sum(counts)
    return Health(**sums)


def health_on_record(value: Any) -> Health | None:
    """The health in a record; None if an earlier version wrote it. Raises ValueError for other values."""
    if value is None:
        return None
    names = {field.name for field in fields(Health)}
    if not isinstance(value, dict) or value.keys() != names:
        raise ValueError(f"its health does not hold {', '.join(sorted(names))}")
    health = Health(**value)
    optional = (health.cut_off, health.unreadable)
    counts = [health.answers, health.empty, health.repeating, health.same, *(c for c in optional if c is not None)]
    if not all(type(count) is int and 0 <= count <= health.answers for count in counts):
        raise ValueError("its health holds a count that is not between 0 and the number of answers")
    return health


def repeats_itself(text: str) -> bool:
    """Whether a text ends in at least `COPIES` copies of one piece, over at least `REPEATED_CHARACTERS`.

    The text may end in the middle of a copy: a rotation of the piece then repeats.
    """
    text = "".join(f" {word}" for word in text.split())
    for length in range(1, len(text) // COPIES + 1):
        copies = max(COPIES, -(-REPEATED_CHARACTERS // length))
        # The first condition is quick, and false for most lengths.
        if text[-1 - length] == text[-1] and text.endswith(text[-length:] * copies):
            return True
    return False
