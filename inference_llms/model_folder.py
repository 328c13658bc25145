"""Check a model folder before its weights are read; find its name and fingerprints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.content_hashes import FileOnRecord, content_hash, json_hash
from utils.errors import UserError
from utils.json_files import read_json_object, read_shaped_object
from utils.model_folders import folder_name
from utils.output_places import SINGLE_MODEL, OutputPlaces
from utils.stand_ins import stand_in_remedy
from utils.tokenizer_files import tokenizer_files, vocabulary_files
from utils.weight_files import ADAPTER_CONFIG_FILE, is_adapter_folder, weight_files

MERGE_RECORD = "merge_record.json"
CONFIG_FILES = ("config.json", "generation_config.json")


def check_model_folder(folder: Path) -> None:
    """Raise UserError unless a folder holds a whole model with its tokenizer, in files that are not stand-ins."""
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


def check_tokenizer(folders: Sequence[Path]) -> Path:
    """The first of the folders that has the vocabulary of a tokenizer. Raises UserError if none has."""
    with_vocabulary = next((folder for folder in folders if vocabulary_files(folder)), None)
    if with_vocabulary is None:
        first, *others = folders
        neither = "".join(f", and neither does {folder}" for folder in others)
        raise UserError(
            f"{first} holds no tokenizer{neither}; copy the files of the original model's tokenizer there "
            "(tokenizer.json, tokenizer.model or vocab.json and merges.txt)"
        )
    return with_vocabulary


def _refuse_adapter(folder: Path) -> None:
    """Raise UserError, because an engine would fail or run the adapter's base model without it."""
    if list(folder.glob("model*.safetensors")) or list(folder.glob("pytorch_model*.bin")):
        raise UserError(
            f"{folder} holds a model and an adapter ({ADAPTER_CONFIG_FILE}), so it is unclear which to run; "
            "move the adapter's files to another folder"
        )
    base = read_json_object(folder / ADAPTER_CONFIG_FILE, "download it again").get("base_model_name_or_path")
    raise UserError(
        f"{folder} holds an adapter of {base or 'another model'}, not a whole model; merge it into that with PEFT's "
        "merge_and_unload() and save_pretrained(), or with merge_llms_instruct_math_code.py"
    )


def model_files(folder: Path) -> list[Path]:
    """The files that completions depend on: config, tokenizer, weights.

    Raises UserError unless the folder exists with a config and weights.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the path of a model folder")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json; give the path of a Hugging Face model folder")
    configs = [folder / name for name in CONFIG_FILES if (folder / name).is_file()]
    return [*configs, *tokenizer_files(folder), *weight_files(folder)]


def file_hashes(folder: Path) -> dict[Path, str]:
    """The hashes of `model_files`. Raises UserError as it does."""
    return {path: content_hash(path) for path in model_files(folder)}


def model_fingerprint(hashes: Mapping[Path, str]) -> str:
    """A hash of everything that a model's completions depend on, from its `file_hashes`."""
    return json_hash([[path.name, value] for path, value in hashes.items()])


def weights_fingerprint(folder: Path, hashes: Mapping[Path, str]) -> str:
    """The recorded fingerprint of a merge, which its folders share although their tokenizers differ; for any other
    folder, `model_fingerprint`. `hashes` are the folder's `file_hashes`.

    Raises UserError if the weights have changed since the merge.
    """
    record = merge_record(folder)
    if record.get("fingerprint") is None:
        return model_fingerprint(hashes)
    outputs = record.get("outputs")
    written = {file["name"]: file["xxh3_128"] for file in outputs} if isinstance(outputs, list) else {}
    for path in weight_files(folder):
        if written and hashes[path] != written.get(path.name):
            raise UserError(
                f"{path}: was changed since the merge in {MERGE_RECORD}; merge again with --overwrite, or remove "
                f"{MERGE_RECORD} if this is another model"
            )
    return record["fingerprint"]


@dataclass(frozen=True)
class MergeIdentity:
    """The fields of a merge record that `merge_record` checks."""

    fingerprint: str | None = None
    tasks_name: str | None = None
    name: str | None = None
    outputs: list[FileOnRecord] | dict[str, int] = field(default_factory=list)


def merge_record(folder: Path) -> dict[str, Any]:
    """The record that a merge left in its folder; empty for a model that was not merged here."""
    path = folder / MERGE_RECORD
    return read_shaped_object(path, MergeIdentity, "merge again, or remove the file") if path.is_file() else {}


def output_places(folder: Path, root: Path) -> OutputPlaces:
    """The places for results of the model in `folder`: those of its merge, else below single_model/<model name>."""
    record = merge_record(folder)
    tasks, name = record.get("tasks_name"), record.get("name")
    if isinstance(tasks, str) and isinstance(name, str):
        return OutputPlaces(root, tasks, name)
    return OutputPlaces(root, SINGLE_MODEL, folder_name(folder))
