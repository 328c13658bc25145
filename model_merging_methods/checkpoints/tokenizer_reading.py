"""Read a model's vocabulary: the tokens and ids that transformers gives its tokenizer.

No code of a checkpoint is executed.
"""

import base64
import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError
from utils.json_files import read_json_object
from utils.stand_ins import stand_in_remedy
from utils.tokenizer_files import tokenizer_files, vocabulary_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
_AGAIN = "download it again"


def read_tokens(folder: Path) -> dict[str, int] | None:
    """The token strings and ids of the tokenizer in `folder`; None for a folder without a vocabulary, whatever its
    tokenizer_config.json says. Callers must not change the dictionary.

    Raises UserError for a tokenizer that cannot be read.
    """
    states = tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in tokenizer_files(folder))
    return _read_tokens(folder, states)


@lru_cache(maxsize=8)
def _read_tokens(folder: Path, states: tuple) -> dict[str, int] | None:
    """As `read_tokens`; `states` tell whether the files are those of an earlier call."""
    files = vocabulary_files(folder)
    if not files:
        return None
    own = folder / TOKENIZER_JSON
    for path in [own] if own in files else files:
        told = stand_in_remedy(path)
        if told is not None:
            raise UserError(f"{path}: {told}")
    if own not in files:
        return _load_vocabulary(folder, files)
    content = _read_tokenizer_json(own)
    tokens = _tokens_of(content)
    if not _adds_tokens(folder, content, tokens):
        return tokens
    try:
        return load_tokenizer(folder).get_vocab()
    except UserError:  # a tokenizer with code of its own
        return tokens


def _load_vocabulary(folder: Path, files: list[Path]) -> dict[str, int]:
    try:
        return load_tokenizer(folder).get_vocab()
    except UserError:
        ranks = [path for path in files if path.suffix == ".tiktoken"]
        if not ranks:
            raise
        return _tiktoken_ranks(ranks[0])  # the first Qwen's and others, whose tokenizers are code


def backend_json(folder: Path) -> dict[str, Any]:
    """The content of a `tokenizer.json` for the tokenizer in `folder`: that file, or what transformers makes of the
    folder where tokens are added beside it or it does not exist."""
    path = folder / TOKENIZER_JSON
    if path in vocabulary_files(folder):
        content = _read_tokenizer_json(path)
        if not _adds_tokens(folder, content, _tokens_of(content)):
            return content
    tokenizer = load_tokenizer(folder)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(
            f"{folder}: its tokenizer has no tokenizer.json form, so its tokens cannot move to the merged rows; merge "
            "models with the pretrained model's vocabulary"
        )
    return json.loads(tokenizer.backend_tokenizer.to_str())


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer as transformers loads it, without remote code. Raises UserError where it does not."""
    from utils.transformers_classes import AutoTokenizer, quiet_transformers

    try:
        with quiet_transformers():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # of a dozen kinds, from several packages
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        names = ", ".join(path.name for path in vocabulary_files(folder))
        raise UserError(f"{folder}: its tokenizer ({names}) cannot be loaded ({reason}); {_AGAIN}") from error


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """The content of `tokenizer_config.json`; empty where there is none."""
    path = folder / TOKENIZER_CONFIG
    return read_json_object(path, _AGAIN) if path.exists() else {}


def model_tokens(content: dict[str, Any]) -> dict[str, int]:
    """The tokens of a `tokenizer.json` without the added ones."""
    vocabulary = content["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram: pairs of token and score, numbered by position
        return {token: row for row, (token, _) in enumerate(vocabulary)}
    return dict(vocabulary)


def _read_tokenizer_json(path: Path) -> dict[str, Any]:
    content = read_json_object(path, _AGAIN)
    try:
        if not all(isinstance(row, int) for row in _tokens_of(content).values()):
            raise TypeError("an id is not a number")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: is not a tokenizer; {_AGAIN}") from None
    return content


def _tokens_of(content: dict[str, Any]) -> dict[str, int]:
    return model_tokens(content) | {entry["content"]: entry["id"] for entry in content["added_tokens"]}


def _adds_tokens(folder: Path, content: dict[str, Any], tokens: dict[str, int]) -> bool:
    """Whether files beside `tokenizer.json` name tokens that it lacks or numbers otherwise, so that transformers'
    vocabulary may be another."""
    config = read_tokenizer_config(folder)
    sources = [config]
    try:
        if "added_tokens_decoder" in config:
            added = {int(row): entry["content"] for row, entry in config["added_tokens_decoder"].items()}
            if added != {entry["id"]: entry["content"] for entry in content["added_tokens"]}:
                return True
        else:
            path = folder / "added_tokens.json"
            if path.exists() and not read_json_object(path, _AGAIN).items() <= tokens.items():
                return True
            path = folder / "special_tokens_map.json"
            sources += [read_json_object(path, _AGAIN)] if path.exists() else []
        return not {token for source in sources for token in _special_tokens(source)} <= tokens.keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        return True


def _special_tokens(config: dict[str, Any]) -> list[str]:
    """The special tokens that a tokenizer's settings name."""
    found = [value for key, value in config.items() if key.endswith("_token") and isinstance(value, (str, dict))]
    for key in ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens"):
        value = config.get(key) or []
        found += value.values() if isinstance(value, dict) else value
    return [token["content"] if isinstance(token, dict) else token for token in found]


def _tiktoken_ranks(path: Path) -> dict[str, int]:
    """The tokens of a file of base64 words with their ids, spelled as byte-level tokenizers spell them."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()
    try:
        lines = [line.split() for line in path.read_bytes().splitlines() if line.strip()]
        return {"".join(letters[byte] for byte in base64.b64decode(word)): int(row) for word, row in lines}
    except ValueError:
        raise UserError(f"{path}: is not a tokenizer; {_AGAIN}") from None
