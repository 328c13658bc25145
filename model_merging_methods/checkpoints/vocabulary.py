"""Align vocabularies that differ by a few added tokens, and write tokenizers with the merged ids.

The merged vocabulary is the base's, followed by each model's added tokens in model order. Rows that a model's
tokenizer does not name (padding of the matrix) are matched by position: they belong to the token that another model
has there. A model without any row for a token gets the mean of its own rows.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from model_merging_methods.checkpoints.tokenizer_reading import (
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    backend_json,
    load_tokenizer,
    model_tokens,
    read_tokenizer_config,
    read_tokens,
)
from utils.errors import UserError
from utils.tokenizer_files import tokenizer_files, vocabulary_files
from utils.whole_files import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAMPLE = "What is two and three?\nThe answer is 5."
MISSING_ROW = -1


@dataclass(frozen=True)
class Vocabulary:
    """A model's token strings with their ids, and how many rows its embedding matrix has."""

    tokens: dict[str, int]
    rows: int

    def named_rows(self) -> dict[str, int]:
        """The tokens with a row: some tokenizers name more tokens than their model has rows."""
        return {token: row for token, row in self.tokens.items() if row < self.rows}


@dataclass(frozen=True)
class AlignedVocabulary:
    """The merged vocabulary: `tokens` with their merged ids, `rows` of the merged matrix, and for the base and each
    model its own row for every merged row (MISSING_ROW: none), or None if the rows are the same.
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


def write_tokenizer(
    source: Path, target: Path, merged: Mapping[str, int], added: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
) -> None:
    """Put the tokenizer of `source` into the folder `target`, with the token ids of the merged vocabulary. `added` are
    tokens that it gets besides its own, as entries of `added_tokens` in a `tokenizer.json`.

    If it has those ids already, its files are copied unchanged. Otherwise its tokens move to the merged ids. The other
    models' added tokens in between become special tokens, because tokenizers number added tokens without gaps. A token
    without a row is dropped if its id now belongs to another token.

    Raises UserError unless transformers then loads the result, gives every token its merged id and splits a text into
    the same tokens as before.
    """
    tokens = read_tokens(source) or {}
    taken = set(merged.values())
    is_moved = bool(added) or any(
        merged[token] != row if token in merged else row in taken for token, row in tokens.items()
    )
    replaced = {*vocabulary_files(source), source / "added_tokens.json"} if is_moved else set()
    for path in tokenizer_files(source):
        if path not in replaced:
            copy = target / path.relative_to(source)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
    if is_moved:
        before = load_tokenizer(source)
        _write_moved(source, target, tokens, merged, added)
        _check_written(source, before, target, [*tokens, *added], tokens, merged)


def new_ids(source: Path, merged: Mapping[str, int]) -> dict[int, int]:
    """The merged id of every token of a folder's tokenizer, by its id there."""
    return {row: merged[token] for token, row in (read_tokens(source) or {}).items() if token in merged}


def _write_moved(
    source: Path,
    target: Path,
    tokens: Mapping[str, int],
    merged: Mapping[str, int],
    new: Mapping[str, Mapping[str, Any]],
) -> None:
    content = backend_json(source)
    ids = new_ids(source, merged)
    own = {entry["content"]: entry for entry in content["added_tokens"]}
    in_model = model_tokens(content)
    last = max(merged[token] for token in tokens if token in merged)
    added = [
        {**(own.get(token) or new.get(token) or added_token(token, special=True)), "id": row}
        for token, row in sorted(merged.items(), key=lambda item: item[1])
        if token in own or token in new or (token not in in_model and row <= last)
    ]
    content["added_tokens"] = added
    _move_post_processor(content.get("post_processor"), ids)
    if content.get("padding"):
        content["padding"]["pad_id"] = ids.get(content["padding"]["pad_id"], content["padding"]["pad_id"])
    (target / TOKENIZER_JSON).write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")

    config = read_tokenizer_config(source)
    if config:
        write_json(target / TOKENIZER_CONFIG, _moved_config(config, added, ids))


def _move_post_processor(part: dict[str, Any] | None, ids: Mapping[int, int]) -> None:
    """Renumber the tokens that a post-processor puts around a text."""
    if not part:
        return
    for inner in part.get("processors", ()):
        _move_post_processor(inner, ids)
    for name in ("sep", "cls"):  # pairs of token and id
        if isinstance(part.get(name), list):
            part[name][1] = ids.get(part[name][1], part[name][1])
    if part.get("type") == "TemplateProcessing":
        for token in part["special_tokens"].values():
            token["ids"] = [ids.get(row, row) for row in token["ids"]]


def _moved_config(config: Mapping[str, Any], added: list[dict[str, Any]], ids: Mapping[int, int]) -> dict[str, Any]:
    moved = {
        key: ids.get(value, value) if key.endswith("_token_id") and isinstance(value, int) else value
        for key, value in config.items()
    }
    if "added_tokens_decoder" in moved:
        moved["added_tokens_decoder"] = {
            str(entry["id"]): {key: value for key, value in entry.items() if key != "id"} for entry in added
        }
    return moved


def _check_written(
    source: Path,
    before: "PreTrainedTokenizerBase",
    target: Path,
    present: Sequence[str],
    tokens: Mapping[str, int],
    merged: Mapping[str, int],
) -> None:
    """Raise UserError unless the written tokenizer gives the tokens `present` their merged ids, and splits a text into
    the same tokens as before."""
    written = load_tokenizer(target)
    vocabulary = written.get_vocab()
    moving = [token for token in present if token in merged]
    for token in moving:
        if vocabulary.get(token) != merged[token]:
            raise UserError(
                f"{source}: token {token!r} cannot move to row {merged[token]} of the merged vocabulary, because it is "
                "not an added token; merge models that extend the vocabulary in the same way"
            )
    added = [token for token in moving if token in tokens and merged[token] != tokens[token]]
    for text in (_SAMPLE, " ".join([_SAMPLE, *added[:20]])):
        wanted, found = (_tokens_in(tokenizer, text) for tokenizer in (before, written))
        if wanted != found or before.special_tokens_map != written.special_tokens_map:
            raise UserError(
                f"{source}: its tokenizer does not give the same tokens with the ids of the merged vocabulary; merge "
                "models that extend the vocabulary in the same way"
            )


def _tokens_in(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


def added_token(token: str, special: bool) -> dict[str, Any]:
    """An entry of `added_tokens` in a `tokenizer.json`, without the id."""
    return {
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }
