"""Check the tokenizers of a merge's models against each other and against the vocabulary matrices."""

from collections.abc import Mapping
from pathlib import Path

from model_merging_methods.checkpoints.tokenizer_reading import (
    TOKENIZER_JSON,
    appended_token,
    read_tokenizer_config,
    read_tokens,
)
from utils.findings import Findings
from utils.json_files import read_json_object
from utils.stand_ins import stand_in_remedy
from utils.tokenizer_files import vocabulary_files
from utils.weight_files import is_adapter_folder

# Matrices are padded to a multiple of 64 or 128, and byte-level tokenizers name 259 tokens of 384 rows.
SMALLEST_NAMED_SHARE = 0.5
# Fine-tunes add or rename some tokens. A tokenizer that shares less with the pretrained model's is another one.
SMALLEST_SHARED_SHARE = 0.5
LARGEST_MOVED_SHARE = 0.1


def check_tokenizers(folders: Mapping[str, Path], rows: Mapping[str, int], findings: Findings) -> None:
    """Report tokenizers that are missing, broken, too small or other than the pretrained model's.

    `folders` are those of the models by role, the pretrained one first; `rows` their numbers of vocabulary rows.
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
                f"{folders[role]}: its tokenizer names {len(own)} tokens where the model has {rows[role]} vocabulary "
                "rows; complete its tokenizer files, or remove them all and rows go by position"
            )
    missing = [role for role in tokens if role not in named and not is_adapter_folder(folders[role])]
    if missing and named:
        source = next(iter(named))
        findings.warn(
            f"{' and '.join(missing)}: no vocabulary in the folder, so rows go by position and the merged folder gets "
            f"the tokenizer of {source}; add the tokenizer files where the ids are others"
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
        if fault is not None:  # tokenizer.json is whole, or reading the tokens had raised
            findings.warn(f"{role}: {path.name}, which {TOKENIZER_JSON} replaces here, {fault}")
    end = None if tokens is None else _end_token(folder)
    if end is not None:
        findings.warn(
            f"{role}: its tokenizer adds {end} to the end of every prompt, so the model sees a text that is over; "
            "prompts are run without it here; for other programs set add_eos_token to false and save it again"
        )


def _check_same_tokenizer(folder: Path, base: Mapping[str, int], own: Mapping[str, int], findings: Findings) -> None:
    """Report a tokenizer that is not the pretrained model's with some tokens more or less."""
    shared = base.keys() & own.keys()
    moved = sum(base[token] != own[token] for token in shared)
    share = len(shared) / max(min(len(base), len(own)), 1)
    if share < SMALLEST_SHARED_SHARE:
        findings.error(
            f"{folder}: another tokenizer than the pretrained model's: of its {len(own)} tokens only {len(shared)} are "
            f"among the {len(base)} there; give fine-tunes with the pretrained model's vocabulary"
        )
    elif moved > LARGEST_MOVED_SHARE * len(shared):
        findings.error(
            f"{folder}: another tokenizer than the pretrained model's: {moved} of {len(shared)} shared tokens have "
            "another id; give fine-tunes with the pretrained model's vocabulary"
        )


def _end_token(folder: Path) -> str | None:
    """The token that a causal model's tokenizer puts behind every text, if any. Encoders are made for theirs."""
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
    config = read_json_object(path, "give a whole Hugging Face model folder")
    names = [str(name) for name in config.get("architectures") or []]
    return bool(config.get("is_encoder_decoder")) or bool(
        names and not any("CausalLM" in name or "LMHead" in name for name in names)
    )
