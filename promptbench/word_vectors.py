"""Words near to a word, by vectors from a file."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from promptbench.missing_part import MissingPart
from utils.errors import UserError

WHERE_TO_GET = "word_vectors/counter-fitted-vectors.txt.zip of https://github.com/nmrksic/counter-fitting, unzipped"


class WordVectors:
    """Words and the directions of their vectors.

    `words`: in the order of the file, in lower case as the counter-fitted set has them; of a word that comes twice the
    first counts. `vectors`: float32, words x dimensions, none of length 0.
    """

    def __init__(self, words: Sequence[str], vectors: np.ndarray):
        self._words = words
        self._directions = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        self._row_of = {word: row for row, word in reversed(list(enumerate(words)))}

    def nearest(self, word: str, number: int, least_cosine: float = -1.0) -> list[str]:
        """The `number` words other than `word` whose vectors lie nearest to its own, by cosine, without those below
        `least_cosine`; the nearest first, of equals the first in the file. They are written as `word` is: in small
        letters, in capitals, or with one capital. None for a word that has no vector."""
        row = self._row_of.get(word.lower())
        if row is None:
            return []
        cosines = self._directions @ self._directions[row]
        nearest = [other for other in np.argsort(-cosines, kind="stable").tolist() if other != row][:number]
        near = (_in_case_of(word, self._words[other]) for other in nearest if cosines[other] >= least_cosine)
        return [other for other in dict.fromkeys(near) if other != word]


def _in_case_of(example: str, word: str) -> str:
    if example.islower():
        return word.lower()
    if example.isupper() and len(example) > 1:
        return word.upper()
    if example[0].isupper() and (example[1:].islower() or len(example) == 1):
        return word.capitalize()
    return word


@functools.cache
def open_word_vectors(path: Path | None) -> WordVectors:
    """Read a word and its numbers a line, with spaces between, as the counter-fitted set is written.

    Raises MissingPart where there is no such file, UserError, with the number of the line, for one that is malformed.
    """
    if path is None:
        raise MissingPart(f"--word_vectors is not given; get {WHERE_TO_GET}, and give the file")
    if not path.is_file():
        raise MissingPart(f"--word_vectors {path}: no such file; get {WHERE_TO_GET}")
    words: list[str] = []
    rows: list[np.ndarray] = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            word, row = _read_line(line, f"--word_vectors {path} line {number}")
            if rows and len(row) != len(rows[0]):
                raise UserError(
                    f"--word_vectors {path} line {number} has {len(row)} numbers where line 1 has {len(rows[0])}; "
                    "a line is a word and its numbers"
                )
            words.append(word)
            rows.append(row)
    if not rows:
        raise UserError(f"--word_vectors {path} is empty; get {WHERE_TO_GET}")
    return WordVectors(words, np.stack(rows))


def _read_line(line: bytes, place: str) -> tuple[str, np.ndarray]:
    word, *numbers = line.split() or [b""]
    try:
        row = np.array(numbers, dtype=np.float32)
        length = np.linalg.norm(row)
        if 0 < length < np.inf:
            return word.decode(), row
    except ValueError:  # of a number, or of the word's bytes
        pass
    raise UserError(f"{place} is not a word and its numbers, which must be finite and not all 0; mend or remove it")
