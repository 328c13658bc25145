"""The record of a merge: enough to make the same model again, and to tell whether a folder is that model."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import xxhash

from model_merging_methods.checkpoint_folder import INDEX_FILE, SINGLE_FILE, read_json_object
from model_merging_methods.merge_parameters import Mask, MergeParameters, Mixup
from utils.errors import UserError
from utils.model_folders import TOKENIZER_FILES

RECORD_FILE = "merge_record.json"
RECORD_FORMAT = 1
PRETRAINED = "pretrained"

_PACKAGES = ("torch", "numpy", "safetensors", "transformers", "tokenizers")
_SMALL_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES)
_READ_AT_ONCE = 1 << 22  # bytes


@dataclass(frozen=True)
class MergeRequest:
    """What is merged, and how: `finetuned` maps each model's role (such as `math`) to its folder, in model
    order."""

    pretrained: Path
    finetuned: Mapping[str, Path]
    parameters: MergeParameters

    @property
    def inputs(self) -> dict[str, Path]:
        return {PRETRAINED: self.pretrained, **self.finetuned}


@dataclass(frozen=True)
class InputFile:
    """A file that a merge depends on. `xxh3_128` is the hash of its content, in hexadecimal."""

    name: str
    bytes: int
    modified_ns: int
    xxh3_128: str


def list_input_files(request: MergeRequest, role: str) -> list[Path]:
    """The files of one input that the result depends on; the pretrained model's weights where it is read."""
    folder = request.inputs[role]
    files = [folder / name for name in _SMALL_FILES if (folder / name).exists()]
    if role == PRETRAINED and not request.parameters.reads_pretrained:
        return files
    if (folder / SINGLE_FILE).exists():
        return [*files, folder / SINGLE_FILE]
    weight_map = read_json_object(folder / INDEX_FILE, "download it")["weight_map"]
    return [*files, folder / INDEX_FILE, *[folder / name for name in sorted(set(weight_map.values()))]]


def fingerprint_inputs(request: MergeRequest) -> dict[str, list[InputFile]]:
    """The files of every input with the hashes of their contents."""
    paths = {role: list_input_files(request, role) for role in request.inputs}
    with ThreadPoolExecutor(1) as pool:
        return {role: list(pool.map(_fingerprint, files)) for role, files in paths.items()}


def _fingerprint(path: Path) -> InputFile:
    state = path.stat()
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_READ_AT_ONCE):
            digest.update(chunk)
    return InputFile(path.name, state.st_size, state.st_mtime_ns, digest.hexdigest())


def weights_fingerprint(parameters: MergeParameters, inputs: Mapping[str, Sequence[InputFile]]) -> str:
    """A hash of all that determines the merged model: two merges share it only if their bytes are the same."""
    contents = {role: {file.name: file.xxh3_128 for file in files} for role, files in inputs.items()}
    text = json.dumps([RECORD_FORMAT, asdict(parameters), contents], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def make_record(
    request: MergeRequest,
    inputs: Mapping[str, Sequence[InputFile]],
    name: str,
    found: Mapping[str, Any],
    times: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of `merge_record.json`, all but the name of the tokenizer that lies beside it.

    `found` holds what the merge learnt on its way (thresholds, vocabulary), `times` when and how long.
    """
    parameters = request.parameters
    return {
        "format": RECORD_FORMAT,
        "tasks_name": tasks_name(request.finetuned),
        "name": name,
        "fingerprint": weights_fingerprint(parameters, inputs),
        "merging_method_name": parameters.merging_method_name,
        "parameters": asdict(parameters),
        "found": dict(found),
        "inputs": [
            {
                "role": role,
                "folder": str(folder.resolve()),
                "bytes": sum(file.bytes for file in inputs[role]),
                "files": [asdict(file) for file in inputs[role]],
            }
            for role, folder in request.inputs.items()
        ],
        "packages": {"python": platform.python_version(), **_package_versions()},
        **times,
    }


def tasks_name(roles: Mapping[str, Any] | Sequence[str]) -> str:
    """The `<tasks>` of outputs: the merged models' roles in model order, such as `instruct_math`."""
    return "_".join(roles)


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def read_record(path: Path) -> dict[str, Any]:
    """A merge record. Raises UserError when the file is not one of a format known here."""
    record = read_json_object(path, "give the merge_record.json of a merged model")
    if record.get("format") != RECORD_FORMAT or not {"parameters", "inputs", "fingerprint"} <= record.keys():
        raise UserError(f"{path}: is not a merge record of this version; give a merged model's {RECORD_FILE}")
    return record


def request_from_record(path: Path, moved: Mapping[str, Path]) -> MergeRequest:
    """The merge that a record describes; `moved` gives the folders that now lie elsewhere, by role."""
    record = read_record(path)
    try:
        fields = dict(record["parameters"])
        if fields["mask"] is not None:
            fields["mask"] = Mask(**fields["mask"])
        if fields["mixup"] is not None:
            fields["mixup"] = Mixup(tuple(fields["mixup"]["weights"]), fields["mixup"]["alpha"])
        folders = {entry["role"]: Path(entry["folder"]) for entry in record["inputs"]}
        unknown = moved.keys() - folders.keys()
        if unknown:
            raise UserError(f"{path}: this merge has no {sorted(unknown)[0]} model; leave that option out")
        folders.update(moved)
        pretrained = folders.pop(PRETRAINED)
        return MergeRequest(pretrained, folders, MergeParameters(**fields))
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: is not a complete merge record ({error}); give an unchanged one") from None


def check_against_record(path: Path, inputs: Mapping[str, Sequence[InputFile]]) -> None:
    """Raise UserError, naming the first file, unless the inputs are those that the record was made with."""
    record = read_record(path)
    for entry in record["inputs"]:
        recorded = {file["name"]: file["xxh3_128"] for file in entry["files"]}
        present = {file.name: file.xxh3_128 for file in inputs[entry["role"]]}
        for name in sorted(recorded.keys() | present.keys()):
            if recorded.get(name) != present.get(name):
                raise UserError(
                    f"{path}: {entry['role']} model's {name} is not the file that the record was made with; "
                    "give the folder with the original"
                )


def is_same_merge(record: Mapping[str, Any], request: MergeRequest) -> bool:
    """Whether a record describes this very merge of these very inputs.

    A file whose size and time of change are as recorded counts as unchanged; else its content decides.
    """
    if record["parameters"] != json.loads(json.dumps(asdict(request.parameters))):
        return False
    if [entry["role"] for entry in record["inputs"]] != list(request.inputs):
        return False
    for entry in record["inputs"]:
        recorded = {file["name"]: file for file in entry["files"]}
        present = list_input_files(request, entry["role"])
        if recorded.keys() != {path.name for path in present}:
            return False
        if not all(_is_unchanged(recorded[path.name], path) for path in present):
            return False
    return True


def _is_unchanged(recorded: Mapping[str, Any], path: Path) -> bool:
    state = path.stat()
    if state.st_size != recorded["bytes"]:
        return False
    if state.st_mtime_ns == recorded["modified_ns"]:
        return True
    return _fingerprint(path).xxh3_128 == recorded["xxh3_128"]
