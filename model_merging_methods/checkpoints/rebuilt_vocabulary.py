"""The vocabulary that a recipe asks for, and where each model's rows for it come from (mergekit's `tokenizer`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model_merging_methods.checkpoints.rebuilt_matrix import StoredRow
from model_merging_methods.checkpoints.vocabulary import Vocabulary


@dataclass(frozen=True)
class TokenRow:
    """The row that a recipe names for a token: row `row` of model number `model`, or zeros if that is None. It counts
    for models without the token, or for all with `force`."""

    model: int | None
    row: int = 0
    force: bool = False


def merged_tokens(first: Mapping[str, int], others: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """The tokens of `first` with their ids, followed by the others' new tokens in model order, each by its id there."""
    merged = dict(first)
    following = max(merged.values(), default=-1) + 1
    for tokens in others:
        for token in sorted(tokens, key=tokens.__getitem__):
            if token not in merged:
                merged[token] = following
                following += 1
    return merged


def rows_by_model(
    merged: Mapping[str, int],
    models: Sequence[Vocabulary],
    inputs: int,
    base: int | None,
    named: Mapping[str, TokenRow],
) -> list[list[Sequence[StoredRow]]]:
    """For each model and each row of the merged vocabulary the stored rows that it is the mean of; a stored row is a
    model's number and the row there.

    A model keeps its own row of a token. One without the token gets the row that `named` says, else the base's, else
    the mean of those that have it, else zeros; only the first `inputs` models count there. A row without a token is the
    model's own, if that has no token either.
    """
    owned = [vocabulary.named_rows() for vocabulary in models]
    token_of = {row: token for token, row in merged.items()}
    unnamed = [set(range(vocabulary.rows)) - set(own.values()) for vocabulary, own in zip(models, owned, strict=True)]

    def shared(token: str) -> list[StoredRow]:
        having = [(number, own[token]) for number, own in enumerate(owned[:inputs]) if token in own]
        of_base = [row for row in having if row[0] == base]
        return of_base or having

    def sources(number: int, row: int) -> Sequence[StoredRow]:
        token = token_of.get(row)
        if token is None:
            return ((number, row),) if row in unnamed[number] else ()
        chosen = named.get(token)
        if token in owned[number] and not (chosen and chosen.force):
            return ((number, owned[number][token]),)
        if chosen is not None:
            return () if chosen.model is None else ((chosen.model, chosen.row),)
        return tuple(shared(token))

    rows = range(max(merged.values(), default=-1) + 1)
    return [[sources(number, row) for row in rows] for number in range(len(models))]
