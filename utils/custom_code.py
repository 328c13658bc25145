"""Code that comes with a checkpoint, which is never run here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.json_files import read_json_object


def code_files(folder: Path) -> list[Path]:
    """The code files of a folder's model or tokenizer, which are copied but never run."""
    return sorted(folder.glob("*.py"))


def check_runs_without_code(folder: Path) -> None:
    """Raise UserError for a model that no engine here can run because transformers needs the model's own code."""
    if not (folder / "config.json").exists():
        return
    config = read_json_object(folder / "config.json", "give a complete Hugging Face model folder")
    modules = ", ".join(code_modules(config))
    if not modules:
        return
    from utils.transformers_configs import knows_model_type

    if not knows_model_type(config.get("model_type")):
        raise UserError(
            f"{folder / 'config.json'}: transformers needs this model's own code ({modules}, in auto_map), "
            "and code of checkpoints is never run here; merge with --merge_only and run it with another program"
        )


def code_modules(config: Mapping[str, Any]) -> list[str]:
    """The code files that a config names."""
    classes = config.get("auto_map")
    if not isinstance(classes, dict):
        return []
    texts = [text for value in classes.values() for text in (value if isinstance(value, list) else [value])]
    return sorted({f"{str(text).split('--')[-1].split('.')[0]}.py" for text in texts if text})
