"""A prompt as words that can be changed one by one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PromptWords:
    """A prompt and its words.

    `words` and `places` (start, end: offsets in `text`) go together; `changed` are the indices of words that were
    changed, and are not attacked again.
    """

    text: str
    words: tuple[str, ...]
    places: tuple[tuple[int, int], ...]
    changed: frozenset[int] = frozenset()

    @classmethod
    def of(cls, text: str) -> "PromptWords":
        raise NotImplementedError

    def replace(self, index: int, new: str) -> "PromptWords":
        raise NotImplementedError

    def delete(self, index: int) -> "PromptWords":
        raise NotImplementedError

    def insert_after(self, index: int, new: str) -> "PromptWords":
        raise NotImplementedError

    def insert_before(self, index: int, new: str) -> "PromptWords":
        raise NotImplementedError
