"""Tokenizer files of a model folder."""

from pathlib import Path

# Files with a vocabulary. SentencePiece models have many names (tokenizer.model, spiece.model,
# sentencepiece.bpe.model, spm.model, source.spm, tokenizer.model.v3, ...).
VOCABULARY_PATTERNS = (
    "tokenizer.json",
    "tokenizer.*.json",
    "*vocab*.json",
    "vocab.txt",
    "*.model",
    "*.model.v*",
    "*.spm",
    "*.tiktoken",
    "tekken*.json",
)
# Files that accompany a vocabulary: settings, merges, word lists of some families, chat templates, and processors of
# images and sound.
_COMPANION_PATTERNS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "bpe.codes",
    "dict.txt",
    "emoji.json",
    "normalizer.json",
    "byte_maps.json",
    "word_*.json",
    "*.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "*processor_config.json",
)


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a folder's tokenizer, chat templates and processors, sorted."""
    return _matching(folder, (*VOCABULARY_PATTERNS, *_COMPANION_PATTERNS))


def vocabulary_files(folder: Path) -> list[Path]:
    """The vocabulary files of a folder, sorted, without empty ones."""
    return [path for path in _matching(folder, VOCABULARY_PATTERNS) if path.stat().st_size]


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
