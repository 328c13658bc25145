"""Vocabularies that differ by a few added tokens, aligned by token string.

The merged vocabulary is the base's, followed by each model's added tokens in model order. A model that
lacks a token's row stands in with the mean of its own rows. Rows that no tokenizer names (padding of the
matrix) go by their position.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.json_files import read_json_object
from utils.model_folders import TOKENIZER_FILES

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


def read_tokens(folder: Path) -> dict[str, int] | None:
    """The token strings and ids of the tokenizer in `folder`, None where it has no tokenizer.

    `tokenizer.json` is read as it is; other forms are loaded by transformers (never with remote code).
    """
    if (folder / "tokenizer.json").exists():
        return _tokens_of(_read_tokenizer_json(folder / "tokenizer.json"))
    if not any((folder / name).exists() for name in TOKENIZER_FILES[1:]):
        return None
    return _load_tokenizer(folder).get_vocab()


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

    unnamed = [set(range(model.rows)) - set(tokens.values()) for tokens, model in zip(named, models, strict=True)]
    rows = max([following, base.rows, *[max(positions) + 1 for positions in unnamed if positions]])
    row_maps = []
    for tokens, positions, model in zip(named, unnamed, models, strict=True):
        row_map = [row if row in positions else MISSING_ROW for row in range(rows)]
        for row in merged.values():
            row_map[row] = MISSING_ROW
        for token, row in tokens.items():
            row_map[merged[token]] = row
        row_maps.append(None if row_map == list(range(model.rows)) else row_map)
    return AlignedVocabulary(merged, rows, tuple(row_maps))


def write_tokenizer(source: Path, target: Path, merged: dict[str, int]) -> None:
    """Put the tokenizer of `source` into the folder `target`, with the token ids of the merged vocabulary.

    Where its ids are those already, its files are copied as they are. Else its tokens are moved to the
    merged ids, and the other models' added tokens in between come along as special tokens, since
    tokenizers number added tokens without gaps; an own token that has no row is left out where its id is
    now that of another's row.

    Raises UserError when a token that must move is not an added one.
    """
    tokens = read_tokens(source)
    taken = set(merged.values())
    moved = [
        token for token, row in (tokens or {}).items() if (merged[token] != row if token in merged else row in taken)
    ]
    for name in TOKENIZER_FILES:
        if (source / name).exists() and not (moved and name in ("tokenizer.model", "added_tokens.json")):
            shutil.copyfile(source / name, target / name)
    if moved:
        _move_tokens(source, target, tokens, merged)


def _move_tokens(source: Path, target: Path, tokens: dict[str, int], merged: dict[str, int]) -> None:
    if (source / "tokenizer.json").exists():
        content = _read_tokenizer_json(source / "tokenizer.json")
    else:
        content = json.loads(_load_tokenizer(source).backend_tokenizer.to_str())
    own = {entry["content"]: entry for entry in content["added_tokens"]}
    in_model = _model_tokens(content)
    last = max(merged[token] for token in tokens if token in merged)
    added = []
    for token, row in sorted(merged.items(), key=lambda item: item[1]):
        if token in own or (token not in in_model and row <= last):
            added.append({**own.get(token, _special_token(token)), "id": row})
    content["added_tokens"] = added
    (target / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")

    config_path = target / "tokenizer_config.json"
    if config_path.exists():
        config = read_json_object(config_path, "get the file anew")
        if "added_tokens_decoder" in config:
            config["added_tokens_decoder"] = {
                str(entry["id"]): {key: value for key, value in entry.items() if key != "id"} for entry in added
            }
            config_path.write_text(json.dumps(config, ensure_ascii=False, indent=2), encoding="utf-8")

    from tokenizers import Tokenizer

    rewritten = Tokenizer.from_file(str(target / "tokenizer.json")).get_vocab(with_added_tokens=True)
    for token in tokens:
        if token in merged and rewritten.get(token) != merged[token]:
            raise UserError(
                f"{source}: token {token!r} cannot move to row {merged[token]} of the merged vocabulary, since "
                "it is not an added token; merge models that extend the vocabulary in the same way"
            )


def _special_token(token: str) -> dict:
    return {
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _read_tokenizer_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        tokens = _tokens_of(content)
        if not all(isinstance(row, int) for row in tokens.values()):
            raise TypeError("an id is not a number")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path}: cannot be read as a tokenizer; get the file anew") from None
    return content


def _tokens_of(content: dict) -> dict[str, int]:
    return _model_tokens(content) | {entry["content"]: entry["id"] for entry in content["added_tokens"]}


def _model_tokens(content: dict) -> dict[str, int]:
    vocabulary = content["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram: pairs of token and score, numbered by position
        return {token: row for row, (token, _) in enumerate(vocabulary)}
    return dict(vocabulary)


def _load_tokenizer(folder: Path):
    from utils.transformers_classes import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{folder}: its tokenizer cannot be loaded ({reason})") from error
