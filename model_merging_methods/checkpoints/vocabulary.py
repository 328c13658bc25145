"""Vocabularies that differ by a few added tokens, aligned by token string.

The merged vocabulary is the base's, followed by each model's added tokens in model order. Rows that a model's
tokenizer does not name (padding of the matrix) go by position: they count for the token that another model
has there. A model without any row for a token gets the mean of its own rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

MISSING_ROW = -1


@dataclass(frozen=True)
class Vocabulary:
    """A model's token strings with their ids, and how many rows its embedding matrix has."""

    tokens: dict[str, int]
    rows: int

    def named_rows(self) -> dict[str, int]:
        """The tokens that have a row: some tokenizers name more tokens than their model has rows."""
        return {token: row for token, row in self.tokens.items() if row < self.rows}


@dataclass(frozen=True)
class AlignedVocabulary:
    """The merged vocabulary: `tokens` with their merged ids, `rows` of the merged matrix, and for the base
    and each model the own row behind every merged row (MISSING_ROW: none), or None where rows are the same.
    """

    tokens: dict[str, int]
    rows: int
    row_maps: tuple[list[int] | None, ...]


def align_vocabularies(base: Vocabulary, finetuned: Sequence[Vocabulary]) -> AlignedVocabulary:
    """Align the models' rows with the base's, by token string."""
    models = [base, *finetuned]
    named = [model.named_rows() for model in models]
    if all(tokens == named[0] and model.rows == base.rows for tokens, model in zip(named, models, strict=True)):
        return AlignedVocabulary(named[0], base.rows, (None,) * len(models))

    merged = dict(named[0])
    following = max(merged.values(), default=-1) + 1
    for tokens in named[1:]:
        for token in sorted(tokens, key=tokens.__getitem__):
            if token not in merged:
                merged[token] = following
                following += 1

    positions_of: dict[str, int] = {}  # each token's row in the first model that names it
    for tokens in named:
        positions_of = tokens | positions_of
    unnamed = [set(range(model.rows)) - set(tokens.values()) for tokens, model in zip(named, models, strict=True)]
    rows = max([following, base.rows, *[max(positions) + 1 for positions in unnamed if positions]])
    row_maps = []
    for tokens, positions, model in zip(named, unnamed, models, strict=True):
        row_map = [row if row in positions else MISSING_ROW for row in range(rows)]
        for token, row in merged.items():
            row_map[row] = tokens.get(token, positions_of[token] if positions_of[token] in positions else MISSING_ROW)
        row_maps.append(None if row_map == list(range(model.rows)) else row_map)
    return AlignedVocabulary(merged, rows, tuple(row_maps))
