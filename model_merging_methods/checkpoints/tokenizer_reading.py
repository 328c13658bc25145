"""Read a model's vocabulary: the tokens and ids that transformers gives its tokenizer.

No code of a checkpoint is executed.
"""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError
from utils.json_files import read_json_object
from utils.stand_ins import stand_in_remedy
from utils.tokenizer_files import tokenizer_files, vocabulary_files

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
_AGAIN = "download it again"


@dataclass(frozen=True)
class _Read:
    """A folder's vocabulary, and the special token that its tokenizer puts behind every text, if any."""

    tokens: dict[str, int] | None
    appended: str | None = None


def read_tokens(folder: Path) -> dict[str, int] | None:
    """The token strings and ids of the tokenizer in `folder`; None for a folder without a vocabulary, whatever its
    tokenizer_config.json says. Callers must not change the dictionary.

    Raises UserError for a tokenizer that cannot be read.
    """
    return _read_once(folder, _states(folder)).tokens


def appended_token(folder: Path) -> str | None:
    """The special token that the tokenizer in `folder` puts behind every text, if any. Raises as `read_tokens`."""
    return _read_once(folder, _states(folder)).appended


def _states(folder: Path) -> tuple:
    """A key that changes when a folder's tokenizer files do."""
    return tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in tokenizer_files(folder))


@lru_cache(maxsize=16)
def _read_once(folder: Path, states: tuple) -> _Read:
    files = vocabulary_files(folder)
    if not files:
        return _Read(None)
    own = folder / TOKENIZER_JSON
    for path in [own] if own in files else files:
        fault = stand_in_remedy(path)
        if fault is not None:
            raise UserError(f"{path}: {fault}")
    if own in files:
        backend = _load_backend(own)
        tokens = backend.get_vocab()
        if _is_whole(folder, backend, tokens) or _has_code(folder):
            return _Read(tokens, _appended(lambda **options: backend.encode("a", **options).tokens))
    ranks = [path for path in files if path.suffix == ".tiktoken"]
    if ranks and _has_code(folder):  # the first Qwen's and others
        return _Read(_tiktoken_ranks(ranks[0]))
    tokenizer = load_tokenizer(folder)
    end = _appended(lambda **options: tokenizer.convert_ids_to_tokens(tokenizer("a", **options)["input_ids"]))
    return _Read(tokenizer.get_vocab(), end)


def _appended(tokens_of_a: Callable[..., list[str]]) -> str | None:
    """The last token of a text, where it comes behind the text's own ones."""
    whole, plain = tokens_of_a(), tokens_of_a(add_special_tokens=False)
    return whole[-1] if plain and whole and whole[-len(plain) :] != plain else None


def backend_json(folder: Path) -> dict[str, Any]:
    """The content of a `tokenizer.json` for the tokenizer in `folder`: that file, or what transformers makes of the
    folder where tokens are added beside it or it does not exist."""
    path = folder / TOKENIZER_JSON
    if path in vocabulary_files(folder):
        backend = _load_backend(path)
        if _is_whole(folder, backend, backend.get_vocab()):
            return read_json_object(path, _AGAIN)
    tokenizer = load_tokenizer(folder)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(
            f"{folder}: its tokenizer has no tokenizer.json form, so its tokens cannot move to the merged rows; merge "
            "models with the pretrained model's vocabulary"
        )
    return json.loads(tokenizer.backend_tokenizer.to_str())


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer as transformers loads it, without remote code. Raises UserError where it does not."""
    from transformers import AutoTokenizer

    from utils.transformers_configs import quiet_transformers

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


def _load_backend(path: Path) -> "Tokenizer":
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # of no specific class
        raise UserError(f"{path}: is not a tokenizer ({' '.join(str(error).split())[:150]}); {_AGAIN}") from error


def _has_code(folder: Path) -> bool:
    """Whether transformers would have to run a folder's code to load its tokenizer."""
    classes = read_tokenizer_config(folder).get("auto_map")
    return bool(classes.get("AutoTokenizer")) if isinstance(classes, dict) else bool(classes)


def _is_whole(folder: Path, backend: "Tokenizer", tokens: dict[str, int]) -> bool:
    """Whether `tokenizer.json` has every token that files beside it name, with the same ids, so that transformers'
    vocabulary is the same."""
    config = read_tokenizer_config(folder)
    sources = [config]
    try:
        if "added_tokens_decoder" in config:
            added = {int(row): entry["content"] for row, entry in config["added_tokens_decoder"].items()}
            if added != {row: token.content for row, token in backend.get_added_tokens_decoder().items()}:
                return False
        else:
            path = folder / "added_tokens.json"
            if path.exists() and not read_json_object(path, _AGAIN).items() <= tokens.items():
                return False
            path = folder / "special_tokens_map.json"
            sources += [read_json_object(path, _AGAIN)] if path.exists() else []
        return {token for source in sources for token in _special_tokens(source)} <= tokens.keys()
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


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
