"""Read and check the tokenizers of model folders: the tokens and ids that transformers gives them.

No code of a checkpoint is executed.
"""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError
from utils.findings import Findings
from utils.json_files import read_json_object
from utils.stand_ins import stand_in_remedy
from utils.tokenizer_files import tokenizer_files, vocabulary_files
from utils.weight_files import is_adapter_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
_AGAIN = "download it again"

# Matrices are padded to a multiple of 64 or 128, and byte-level tokenizers name 259 tokens of 384 rows.
SMALLEST_NAMED_SHARE = 0.5
# Fine-tunes add or rename some tokens. A tokenizer that shares fewer with the pretrained model's is a different one.
SMALLEST_SHARED_SHARE = 0.5
LARGEST_MOVED_SHARE = 0.1


@dataclass(frozen=True)
class _Tokenizer:
    """A folder's vocabulary, and the special token that its tokenizer appends to every text, if any."""

    tokens: dict[str, int] | None
    appended: str | None = None


def read_tokens(folder: Path) -> dict[str, int] | None:
    """The token strings and ids of the tokenizer in `folder`; None for a folder without a vocabulary, even if it
    has a tokenizer_config.json. Callers must not change the dictionary.

    Raises UserError for a tokenizer that cannot be read.
    """
    return _read_once(folder, _states(folder)).tokens


def appended_token(folder: Path) -> str | None:
    """The special token that the tokenizer in `folder` appends to every text, if any. Raises like `read_tokens`."""
    return _read_once(folder, _states(folder)).appended


def _states(folder: Path) -> tuple:
    """A key that changes when a folder's tokenizer files do."""
    return tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in tokenizer_files(folder))


@lru_cache(maxsize=16)
def _read_once(folder: Path, states: tuple) -> _Tokenizer:
    files = vocabulary_files(folder)
    if not files:
        return _Tokenizer(None)
    own = folder / TOKENIZER_JSON
    for path in [own] if own in files else files:
        fault = stand_in_remedy(path)
        if fault is not None:
            raise UserError(f"{path}: {fault}")
    if own in files:
        backend = _load_backend(own)
        tokens = backend.get_vocab()
        if _is_whole(folder, backend, tokens) or _has_code(folder):
            return _Tokenizer(tokens, _appended(lambda **options: backend.encode("a", **options).tokens))
    ranks = [path for path in files if path.suffix == ".tiktoken"]
    if ranks and _has_code(folder):  # the first Qwen's and others
        return _Tokenizer(_tiktoken_ranks(ranks[0]))
    tokenizer = load_tokenizer(folder)
    end = _appended(lambda **options: tokenizer.convert_ids_to_tokens(tokenizer("a", **options)["input_ids"]))
    return _Tokenizer(tokenizer.get_vocab(), end)


def _appended(tokens_of_a: Callable[..., list[str]]) -> str | None:
    """The last token of a text, if it follows the text's own tokens."""
    whole, plain = tokens_of_a(), tokens_of_a(add_special_tokens=False)
    return whole[-1] if plain and whole and whole[-len(plain) :] != plain else None


def backend_json(folder: Path) -> dict[str, Any]:
    """The content of a `tokenizer.json` for the tokenizer in `folder`: that file, or transformers' conversion if the
    file is missing or other files add tokens to it."""
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
    """The tokenizer as transformers loads it, without remote code. Raises UserError if it cannot."""
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
    """The content of `tokenizer_config.json`; empty without that file."""
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
    """Whether `tokenizer.json` has every token that the other files name, with the same ids, so that transformers gives
    the same vocabulary."""
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


def check_tokenizers(folders: Mapping[str, Path], rows: Mapping[str, int], findings: Findings) -> None:
    """Report tokenizers that are missing, broken, too small or different from the pretrained model's.

    `folders` are the models' folders by role, the pretrained one's first; `rows` their numbers of vocabulary rows.
    """
    tokens: dict[str, dict[str, int] | None] = {}
    for role, folder in folders.items():
        with findings.collect():
            tokens[role] = read_tokens(folder)
            _check_files(role, folder, tokens[role], findings)
    named = {role: own for role, own in tokens.items() if own is not None}
    for role, own in named.items():
        if len([row for row in own.values() if row < rows[role]]) < SMALLEST_NAMED_SHARE * rows[role]:
            findings.error(
                f"{folders[role]}: its tokenizer names {len(own)} tokens, but the model has {rows[role]} vocabulary "
                "rows; complete its tokenizer files, or remove them all to match rows by position"
            )
    missing = [role for role in tokens if role not in named and not is_adapter_folder(folders[role])]
    if missing and named:
        source = next(iter(named))
        findings.warn(
            f"{' and '.join(missing)}: no vocabulary in the folder, so rows are matched by position and the merged "
            f"folder gets the tokenizer of {source}; add the tokenizer files if its ids differ"
        )
    elif missing and any(rows.values()):
        findings.warn("no model's folder has a vocabulary, so the merged folder has no tokenizer; add one to run it")
    if named:
        first, *others = named
        for role in others:
            _check_same_tokenizer(folders[role], named[first], named[role], findings)


def _check_files(role: str, folder: Path, tokens: Mapping[str, int] | None, findings: Findings) -> None:
    for path in vocabulary_files(folder):
        fault = stand_in_remedy(path)
        if fault is not None:  # tokenizer.json is whole, or reading the tokens would have raised
            findings.warn(f"{role}: {path.name}, which {TOKENIZER_JSON} replaces here, {fault}")
    end = None if tokens is None else _end_token(folder)
    if end is not None:
        findings.warn(
            f"{role}: its tokenizer adds {end} to the end of every prompt, so the model sees a finished text; prompts "
            "are run without it here; for other programs set add_eos_token to false and save the tokenizer again"
        )


def _check_same_tokenizer(folder: Path, base: Mapping[str, int], own: Mapping[str, int], findings: Findings) -> None:
    """Report a tokenizer that differs from the pretrained model's in more than a few added tokens."""
    shared = base.keys() & own.keys()
    moved = sum(base[token] != own[token] for token in shared)
    share = len(shared) / max(min(len(base), len(own)), 1)
    if share < SMALLEST_SHARED_SHARE:
        findings.error(
            f"{folder}: its tokenizer differs from the pretrained model's: of its {len(own)} tokens only {len(shared)} "
            f"are among the {len(base)} there; give fine-tunes with the pretrained model's vocabulary"
        )
    elif moved > LARGEST_MOVED_SHARE * len(shared):
        findings.error(
            f"{folder}: its tokenizer differs from the pretrained model's: {moved} of {len(shared)} shared tokens have "
            "another id; give fine-tunes with the pretrained model's vocabulary"
        )


def _end_token(folder: Path) -> str | None:
    """The token that a causal model's tokenizer appends to every text, if any. Encoders need theirs."""
    if _is_encoder(folder):
        return None
    config = read_tokenizer_config(folder)
    end = config.get("eos_token")
    end = end.get("content") if isinstance(end, dict) else end
    return appended_token(folder) or (str(end) if config.get("add_eos_token") is True and end else None)


def _is_encoder(folder: Path) -> bool:
    path = folder / "config.json"
    if not path.exists():
        return False
    config = read_json_object(path, "give a complete Hugging Face model folder")
    names = [str(name) for name in config.get("architectures") or []]
    return bool(config.get("is_encoder_decoder")) or bool(
        names and not any("CausalLM" in name or "LMHead" in name for name in names)
    )
