"""Split a prompt into words that can be changed one by one."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

# NLTK's English list as it was before February 2025. The 19 words added then ("i'm", "they've") are left out,
# because they would change which words are attacked.
STOP_WORDS = frozenset(json.loads(Path(__file__).with_name("stop_words.json").read_text(encoding="utf-8")))

# The words of TextAttack 0.3.7. Its homoglyph attack writes "-", "'" and "x" as these three symbols, so they count as
# letters; all other homoglyphs are letters or digits.
HOMOGLYPH_SYMBOLS = "\u02d7`\u00d7"
WORD = re.compile(rf"(?:[^\W_]|[{HOMOGLYPH_SYMBOLS}])[\w'*@{HOMOGLYPH_SYMBOLS}-]*")


@dataclass(frozen=True)
class PromptWords:
    """A prompt and its words: runs of letters and digits, where ' - _ * @ belong to a word except at its start.

    `places` are the (start, end) offsets of `words` in `text`. `changed` are the indices of changed words, which are
    not attacked again. Methods that change a word return a new prompt; replacing one word by two moves all later
    indices by one.
    """

    text: str
    words: tuple[str, ...]
    places: tuple[tuple[int, int], ...]
    changed: frozenset[int] = frozenset()

    @classmethod
    def of(cls, text: str, changed: frozenset[int] = frozenset()) -> "PromptWords":
        """Split a text into words. Those at the indices `changed` count as changed."""
        matches = list(WORD.finditer(text))
        return cls(text, tuple(match.group() for match in matches), tuple(match.span() for match in matches), changed)

    def replace(self, index: int, new: str) -> "PromptWords":
        """The prompt with `new` instead of the word at `index`. All words of `new` count as changed.

        Unchanged if `new` is that word itself.
        """
        if new == self.words[index]:
            return self
        start, end = self.places[index]
        return self._with(index, self.text[:start], new, self.text[end:])

    def delete(self, index: int) -> "PromptWords":
        """The prompt without the word at `index` and one space: the one before it, or after the first word. The last
        word's space stays if nothing follows."""
        start, end = self.places[index]
        before, after = self.text[:start], self.text[end:]
        if index == 0:
            after = after.removeprefix(" ")
        elif after:
            before = before.removesuffix(" ")
        return self._with(index, before, "", after)

    def insert_after(self, index: int, new: str) -> "PromptWords":
        """The prompt with a space and `new` right after the word at `index`, which counts as changed too."""
        return self.replace(index, f"{self.words[index]} {new}")

    def modifiable(self, protected: frozenset[str]) -> list[int]:
        """Indices of the words that an attack may change: not in `protected` (lower case; compared ignoring case), not
        English stop words (compared with case: "As" is not one), not changed before."""
        return [
            index
            for index, word in enumerate(self.words)
            if word.lower() not in protected and word not in STOP_WORDS and index not in self.changed
        ]

    def index_of_change(self, before: "PromptWords") -> int:
        """Index of the first word changed here but not in `before`, the prompt before the last change."""
        return min(self.changed - before.changed)

    def _with(self, index: int, before: str, new: str, after: str) -> "PromptWords":
        # No word of `new` can join a neighbour: a word ends at a character that no word contains.
        number = len(WORD.findall(new))
        moved = {other + (number - 1 if other > index else 0) for other in self.changed if other != index}
        return PromptWords.of(before + new + after, frozenset(moved.union(range(index, index + number))))
