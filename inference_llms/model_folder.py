"""A model's folder: whether it is whole, whose weights it holds, and its name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.content_hashes import FileOnRecord, content_hash, json_hash
from utils.errors import UserError
from utils.json_files import read_shaped_object
from utils.output_places import SINGLE_MODEL, OutputPlaces
from utils.tokenizer_files import tokenizer_files
from utils.weight_files import weight_files

MERGE_RECORD = "merge_record.json"
CONFIG_FILES = ("config.json", "generation_config.json")


@dataclass(frozen=True)
class RecordShape:
    """The fields of a merge's record that are read here."""

    fingerprint: str | None = None
    tasks_name: str | None = None
    name: str | None = None
    outputs: list[FileOnRecord] | dict[str, int] = field(default_factory=list)


def model_files(folder: Path) -> list[Path]:
    """The files that decide what the model answers: config, tokenizer, weights.

    Raises `UserError` unless the folder is there with a config and weights.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the path of a model folder")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json; give the path of a Hugging Face model folder")
    configs = [folder / name for name in CONFIG_FILES if (folder / name).is_file()]
    return [*configs, *tokenizer_files(folder), *weight_files(folder)]


def file_hashes(folder: Path) -> dict[Path, str]:
    """The hashes of `model_files`. Raises as that."""
    return {path: content_hash(path) for path in model_files(folder)}


def model_fingerprint(hashes: Mapping[Path, str]) -> str:
    """A hash of all that a model's answers depend on, from its `file_hashes`."""
    return json_hash([[path.name, value] for path, value in hashes.items()])


def weights_fingerprint(folder: Path, hashes: Mapping[Path, str]) -> str:
    """A hash that the folders of one merge, which differ in their tokenizer, share: the merge's fingerprint on record.
    For any other folder `model_fingerprint`. `hashes` are the folder's `file_hashes`.

    Raises UserError where the weights are no longer those that the merge wrote.
    """
    record = merge_record(folder)
    if record.get("fingerprint") is None:
        return model_fingerprint(hashes)
    outputs = record.get("outputs")
    written = {file["name"]: file["xxh3_128"] for file in outputs} if isinstance(outputs, list) else {}
    for path in weight_files(folder):
        if written and hashes[path] != written.get(path.name):
            raise UserError(
                f"{path}: was changed since the merge that {MERGE_RECORD} describes; make the merge again with "
                f"--overwrite, or remove {MERGE_RECORD} from a model of other weights"
            )
    return record["fingerprint"]


def merge_record(folder: Path) -> dict[str, Any]:
    """The record that a merge left in its folder; empty for a model that was not merged here."""
    path = folder / MERGE_RECORD
    return read_shaped_object(path, RecordShape, "merge again, or remove the file") if path.is_file() else {}


def output_places(folder: Path, root: Path) -> OutputPlaces:
    """Where results of the model in `folder` go: with its merge's, else below single_model/<folder name>."""
    record = merge_record(folder)
    tasks, name = record.get("tasks_name"), record.get("name")
    if isinstance(tasks, str) and isinstance(name, str):
        return OutputPlaces(root, tasks, name)
    return OutputPlaces(root, SINGLE_MODEL, _name_of_model(folder.resolve()))


def _name_of_model(folder: Path) -> str:
    """The folder's name; of a download in the hub's cache (models--<owner>--<name>/snapshots/<commit>), the model's."""
    if folder.parent.name == "snapshots":
        return folder.parents[1].name.split("--")[-1]
    return folder.name
