"""Characters that look like others."""

import json
from pathlib import Path

# Of a small letter, a digit, - or ', the character that stands for it in TextAttack 0.3.7.
HOMOGLYPHS: dict[str, str] = json.loads(Path(__file__).with_name("homoglyphs.json").read_text(encoding="utf-8"))


def with_homoglyphs(word: str) -> list[str]:
    """The word with a homoglyph for one of its characters, for each that has one, in their order."""
    return [
        word[:place] + HOMOGLYPHS[letter] + word[place + 1 :]
        for place, letter in enumerate(word)
        if letter in HOMOGLYPHS
    ]
