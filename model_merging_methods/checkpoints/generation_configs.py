"""The generation config of a merged model: how it draws, and where it stops."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_merging_methods.checkpoints.configs import TOKEN_IDS, renumbered
from utils.errors import UserError
from utils.findings import Findings
from utils.json_files import read_json_object

GENERATION_CONFIG = "generation_config.json"
_NUMBERS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_length")


def generation_config(folder: Path, new_ids: Mapping[int, int]) -> dict[str, Any] | None:
    """What can be kept of a folder's generation config, with the merged token ids; None for none."""
    kept = _read(folder)[0]
    return (
        None
        if kept is None
        else {key: renumbered(value, new_ids) if TOKEN_IDS.fullmatch(key) else value for key, value in kept.items()}
    )


def check_generation_configs(folders: Mapping[str, Path], findings: Findings) -> None:
    """Report generation configs, by role, of which only a part can be kept."""
    for role, folder in folders.items():
        fault = _read(folder)[1]
        if fault is not None:
            findings.warn(f"{role}: {GENERATION_CONFIG} {fault}")


def _read(folder: Path) -> tuple[dict[str, Any] | None, str | None]:
    """What can be kept of a folder's generation config, and why it is not all of it."""
    path = folder / GENERATION_CONFIG
    if not path.exists():
        return None, None
    try:
        content = read_json_object(path, "")
    except UserError as error:
        reason = str(error).removeprefix(str(path)).strip(" ;")
        return None, f"{reason}; it is left out, and the merged model stops where config.json says"
    if all(_is_plain(key, value) for key, value in content.items()):
        return content, None
    from utils.transformers_configs import why_no_generation_config

    reason = why_no_generation_config(content)
    if reason is None:
        return content, None
    kept = {key: value for key, value in content.items() if _is_plain(key, value)}
    return kept, f"is refused by transformers ({reason}); the merged model has {', '.join(kept) or 'nothing'} of it"


def _is_plain(key: str, value: Any) -> bool:
    """Whether transformers takes a value for certain; asking it takes seconds."""
    if TOKEN_IDS.fullmatch(key):
        ids = value if isinstance(value, list) else [value]
        return value is None or all(type(item) is int for item in ids)
    if key in _NUMBERS:
        return value is None or (isinstance(value, (int, float)) and value > 0)
    return key in ("transformers_version", "_from_model_config", "do_sample") and isinstance(
        value, (str, bool, type(None))
    )
