"""Checks of a model folder before any of its weights are read: what no engine can run is refused, with a remedy."""

from collections.abc import Sequence
from pathlib import Path

from inference_llms.model_folder import model_files
from utils.errors import UserError
from utils.json_files import read_json_object
from utils.stand_ins import stand_in_remedy
from utils.tokenizer_files import vocabulary_files
from utils.weight_files import ADAPTER_CONFIG_FILE, is_adapter_folder


def check_model_folder(folder: Path) -> None:
    """Raise UserError unless a folder holds a whole model, with its tokenizer, in files that are not stand-ins."""
    if is_adapter_folder(folder):
        _refuse_adapter(folder)
    if folder.is_dir() and not (folder / "config.json").is_file():
        inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
        if inside:
            raise UserError(
                f"{folder} holds no model itself, but folders that do ({', '.join(inside)}); give one of them"
            )
    for path in model_files(folder):
        if fault := stand_in_remedy(path):
            raise UserError(f"{path} {fault}")
    check_tokenizer([folder])


def check_tokenizer(folders: Sequence[Path]) -> None:
    """Raise UserError unless one of the folders, the first preferred, has the vocabulary of a tokenizer."""
    if not any(vocabulary_files(folder) for folder in folders):
        first, *others = folders
        nor = "".join(f" (nor does {folder})" for folder in others)
        raise UserError(
            f"{first} holds no tokenizer{nor}; copy the tokenizer's files there (tokenizer.json, tokenizer.model or "
            "vocab.json and merges.txt), from the model that this one was made from"
        )


def _refuse_adapter(folder: Path) -> None:
    """An engine would run the adapter's base model without it, or fail."""
    if list(folder.glob("model*.safetensors")) or list(folder.glob("pytorch_model*.bin")):
        raise UserError(
            f"{folder} holds a model and an adapter ({ADAPTER_CONFIG_FILE}), and it is not clear which to run; "
            "move the adapter's files to another folder"
        )
    base = read_json_object(folder / ADAPTER_CONFIG_FILE, "download it again").get("base_model_name_or_path")
    raise UserError(
        f"{folder} holds an adapter of {base or 'another model'}, not a whole model; merge it into that with PEFT's "
        "merge_and_unload() and save_pretrained(), or with merge_llms_instruct_math_code.py"
    )
