"""What a folder of a model tells about itself: whether it is whole, whose weights it holds, its name."""

import hashlib
import json
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.json_files import read_json_object
from utils.output_places import SINGLE_MODEL, OutputPlaces
from utils.tokenizer_files import tokenizer_files

MERGE_RECORD = "merge_record.json"
CONFIG_FILES = ("config.json", "generation_config.json")
SAMPLED_PIECES = 256
PIECE_BYTES = 4096
HEAD_BYTES = 1 << 20


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a model folder, by name.

    Raises `UserError` unless the folder is there with a config and weights.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the path of a model folder")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json; give the path of a Hugging Face model folder")
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise UserError(f"{folder} holds no weights (*.safetensors or pytorch_model*.bin); copy them there")
    return files


def model_fingerprint(folder: Path) -> str:
    """A SHA-256 that tells the model's answers apart from another's: config, tokenizer and weights.

    The head and 256 evenly spaced pieces of each weight file are read, not the whole: fine-tuning changes
    almost every weight, and a run must not wait minutes for 26 GB. A merge's own fingerprint of its weights
    is added where the folder holds one. Raises as `weight_files`.
    """
    digest = hashlib.sha256()
    files = weight_files(folder)
    configs = [folder / name for name in CONFIG_FILES if (folder / name).is_file()]
    for path in configs + tokenizer_files(folder):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder)} {len(content)}\n".encode() + content)
    recorded = merge_record(folder).get("fingerprint")
    if recorded is not None:
        digest.update(json.dumps(recorded, sort_keys=True).encode())
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            digest.update(file.read(HEAD_BYTES))
            for piece in range(SAMPLED_PIECES):
                file.seek(size * piece // SAMPLED_PIECES)
                digest.update(file.read(PIECE_BYTES))
    return digest.hexdigest()


def weights_fingerprint(folder: Path) -> str:
    """What the folders of one merge, which differ in their tokenizer, have in common: the merge's fingerprint
    on record. For any other folder `model_fingerprint`."""
    recorded = merge_record(folder).get("fingerprint")
    return recorded if isinstance(recorded, str) else model_fingerprint(folder)


def merge_record(folder: Path) -> dict[str, Any]:
    """The record that a merge left in its folder; empty for a model that was not merged here."""
    path = folder / MERGE_RECORD
    return read_json_object(path, "merge again, or remove the file") if path.is_file() else {}


def output_places(folder: Path, root: Path) -> OutputPlaces:
    """Where results of the model in `folder` go: with its merge's, else below single_model/<folder name>."""
    record = merge_record(folder)
    tasks, name = record.get("tasks_name"), record.get("name")
    if isinstance(tasks, str) and isinstance(name, str):
        return OutputPlaces(root, tasks, name)
    return OutputPlaces(root, SINGLE_MODEL, folder.resolve().name)
