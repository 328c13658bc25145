"""A prompt as words that can be changed one by one."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

# NLTK's English list as it was before February 2025. The 19 words added then ("i'm", "they've") are left out: with
# them, other words would be attacked than in the paper.
STOP_WORDS = frozenset(json.loads(Path(__file__).with_name("stop_words.json").read_text(encoding="utf-8")))

# TextAttack 0.3.7's words. These three symbols stand for "-", "'" and "x" in its homoglyph attack and count as letters;
# the other homoglyphs are letters or digits anyway.
HOMOGLYPH_SYMBOLS = "\u02d7`\u00d7"
WORD = re.compile(rf"(?:[^\W_]|[{HOMOGLYPH_SYMBOLS}])[\w'*@{HOMOGLYPH_SYMBOLS}-]*")


def cut_words(text: str) -> list[tuple[str, int, int]]:
    """The words of a text with their offsets, the end exclusive: runs of letters and digits; ' - _ * @ belong to a
    word except at its start."""
    return [(match.group(), match.start(), match.end()) for match in WORD.finditer(text)]


@dataclass(frozen=True)
class PromptWords:
    """A prompt and its words.

    `words` and `places` (start, end: offsets in `text`) go together; `changed` are the indices of words that were
    changed, and are not attacked again. The methods that change a word give a new prompt, whose words are counted anew:
    a change to two words moves all later indices by one.
    """

    text: str
    words: tuple[str, ...]
    places: tuple[tuple[int, int], ...]
    changed: frozenset[int] = frozenset()

    @classmethod
    def of(cls, text: str) -> "PromptWords":
        """The prompt with nothing changed."""
        return cls._cut(text, frozenset())

    @classmethod
    def _cut(cls, text: str, changed: frozenset[int]) -> "PromptWords":
        words = cut_words(text)
        return cls(text, tuple(word for word, _, _ in words), tuple((start, end) for _, start, end in words), changed)

    def replace(self, index: int, new: str) -> "PromptWords":
        """The prompt with `new`, of any number of words, for the word at `index`; all of them count as changed, unless
        `new` is the word itself."""
        if new == self.words[index]:
            return self
        start, end = self.places[index]
        return self._with(index, self.text[:start], new, self.text[end:])

    def delete(self, index: int) -> "PromptWords":
        """The prompt without the word at `index` and one space: the one before it, or after the first word. The last
        word's space stays where nothing follows."""
        start, end = self.places[index]
        before, after = self.text[:start], self.text[end:]
        if index == 0:
            after = after.removeprefix(" ")
        elif after:
            before = before.removesuffix(" ")
        return self._with(index, before, "", after)

    def insert_after(self, index: int, new: str) -> "PromptWords":
        """The prompt with a space and `new` right after the word at `index`; that word counts as changed too."""
        return self.replace(index, f"{self.words[index]} {new}")

    def insert_before(self, index: int, new: str) -> "PromptWords":
        """The prompt with `new` and a space right before the word at `index`; that word counts as changed too."""
        return self.replace(index, f"{new} {self.words[index]}")

    def modifiable(self, protected: frozenset[str]) -> list[int]:
        """Indices of the words that an attack may change: not in `protected` (lower case, compared without regard to
        case), no English stop word (in lower case: "As" is none), not changed before."""
        return [
            index
            for index, word in enumerate(self.words)
            if word.lower() not in protected and word not in STOP_WORDS and index not in self.changed
        ]

    def index_of_change(self, before: "PromptWords") -> int:
        """Index of the first word that is changed here and was not in the prompt `before` the last change."""
        return min(self.changed - before.changed)

    def _with(self, index: int, before: str, new: str, after: str) -> "PromptWords":
        # No word of `new` grows together with one around it: a word ends at a character that no word holds.
        number = len(cut_words(new))
        moved = {other + (number - 1 if other > index else 0) for other in self.changed if other != index}
        return self._cut(before + new + after, frozenset(moved.union(range(index, index + number))))
