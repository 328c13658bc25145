"""The files of a model folder that decide how text becomes tokens."""

from pathlib import Path

# Files that hold a vocabulary. The SentencePiece models of many families have their own names (tokenizer.model,
# spiece.model, sentencepiece.bpe.model, spm.model, source.spm, tokenizer.model.v3, ...).
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
# Files beside a vocabulary: settings, merges, word lists of single families, chat templates, and what turns images
# and sound into inputs.
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
    """The files of a folder that hold a vocabulary, sorted. An empty file holds none."""
    return [path for path in _matching(folder, VOCABULARY_PATTERNS) if path.stat().st_size]


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
