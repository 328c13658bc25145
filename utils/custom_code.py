"""Checkpoints that come with code, which is never executed here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.json_files import read_json_object


def code_files(folder: Path) -> list[Path]:
    """The code that comes with a folder's model or tokenizer: copied, never run."""
    return sorted(folder.glob("*.py"))


def check_runs_without_code(folder: Path) -> None:
    """Raise UserError for a model that no engine here can run, because transformers knows it only by its code."""
    if not (folder / "config.json").exists():
        return
    config = read_json_object(folder / "config.json", "give a whole Hugging Face model folder")
    modules = ", ".join(code_modules(config))
    if not modules:
        return
    from utils.transformers_configs import knows_model_type

    if not knows_model_type(config.get("model_type")):
        raise UserError(
            f"{folder / 'config.json'}: auto_map names code ({modules}) without which transformers does not know this "
            "model, and code of checkpoints is never run here; merge with --merge_only and run it with another program"
        )


def code_modules(config: Mapping[str, Any]) -> list[str]:
    """The code files that a config names."""
    classes = config.get("auto_map")
    if not isinstance(classes, dict):
        return []
    texts = [text for value in classes.values() for text in (value if isinstance(value, list) else [value])]
    return sorted({f"{str(text).split('--')[-1].split('.')[0]}.py" for text in texts if text})
