"""The record of a merge: enough to make the same model again, and to tell whether a folder is that model."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model_merging_methods.checkpoints.checkpoint_folder import CheckpointFolder
from model_merging_methods.checkpoints.fingerprints import small_file_fingerprint, weight_file_fingerprints
from model_merging_methods.checkpoints.weight_files import adapter_files, index_file, is_adapter_folder, weight_files
from model_merging_methods.kernels.stored_dtypes import is_floating
from model_merging_methods.merge_parameters import MergeParameters, parameters_from_fields
from utils.errors import UserError
from utils.json_files import read_json_object
from utils.package_versions import package_versions
from utils.tokenizer_files import tokenizer_files

RECORD_FILE = "merge_record.json"
RECORD_FORMAT = 2
PRETRAINED = "pretrained"

_PACKAGES = ("torch", "numpy", "safetensors", "transformers", "tokenizers")
_CONFIG_FILES = ("config.json", "generation_config.json")


@dataclass(frozen=True)
class MergeRequest:
    """What is merged, and how: `finetuned` maps each model's role (such as `math`) to its folder, in model
    order."""

    pretrained: Path
    finetuned: Mapping[str, Path]
    parameters: MergeParameters

    @property
    def inputs(self) -> dict[str, Path]:
        """All folders by role, the pretrained model's first."""
        return {PRETRAINED: self.pretrained, **self.finetuned}


@dataclass(frozen=True)
class InputFile:
    """A file that a merge depends on. `xxh3_128` is the hash of its content, in hexadecimal; of weights, that of
    their values (`fingerprints`)."""

    name: str
    bytes: int
    modified_ns: int
    xxh3_128: str


def list_input_files(folder: Path) -> list[Path]:
    """The files of an input folder that a merge depends on."""
    files = [folder / name for name in _CONFIG_FILES if (folder / name).exists()] + tokenizer_files(folder)
    if is_adapter_folder(folder):
        return [*files, *adapter_files(folder)]
    index = index_file(folder)
    return [*files, *([] if index is None else [index]), *weight_files(folder)]


def fingerprint_inputs(
    request: MergeRequest, models: Sequence[CheckpointFolder], digests: Sequence[Mapping[str, str]] | None = None
) -> dict[str, list[InputFile]]:
    """The files of every input with the hashes of their contents, `models` being the opened folders, the pretrained
    model's first. `digests` are those of each model's tensors that are known already, by name."""
    files = {}
    for i, (role, model) in enumerate(zip(request.inputs, models, strict=True)):
        weights = {}
        if not model.reads_pretrained:
            known = digests[i] if digests else {}
            weights = weight_file_fingerprints(model, known, lambda name, i=i: _matters(request, models, i, name))
        files[role] = [
            _input_file(path, weights.get(path) or small_file_fingerprint(path))
            for path in list_input_files(model.folder)
        ]
    return files


def _matters(request: MergeRequest, models: Sequence[CheckpointFolder], model: int, name: str) -> bool:
    """Whether the result depends on the values of a model's tensor, not only on its name, dtype and shape."""
    copied = not is_floating(models[model].tensors[name].dtype) or request.parameters.excludes(name)
    if model == 0:
        return copied or request.parameters.reads_pretrained or any(model.reads_pretrained for model in models)
    return not copied


def _input_file(path: Path, fingerprint: str) -> InputFile:
    state = path.stat()
    return InputFile(path.name, state.st_size, state.st_mtime_ns, fingerprint)


def merge_fingerprint(parameters: MergeParameters, inputs: Mapping[str, Sequence[InputFile]]) -> str:
    """A hash of all that the merged weights depend on: merges share it only if their weights are the same."""
    contents = {role: {file.name: file.xxh3_128 for file in files} for role, files in inputs.items()}
    text = json.dumps([RECORD_FORMAT, parameters.to_fields(), contents], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def make_record(
    request: MergeRequest,
    inputs: Mapping[str, Sequence[InputFile]],
    name: str,
    found: Mapping[str, Any],
    outputs: Mapping[str, int],
    times: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of `merge_record.json`, all but the name of the tokenizer that lies beside it.

    `found` holds what the merge learnt on its way (thresholds, vocabulary), `outputs` the weight files' sizes
    in bytes, `times` when and how long.
    """
    parameters = request.parameters
    return {
        "format": RECORD_FORMAT,
        "tasks_name": tasks_name(request.finetuned),
        "name": name,
        "fingerprint": merge_fingerprint(parameters, inputs),
        "merging_method_name": parameters.merging_method_name,
        "parameters": parameters.to_fields(),
        "found": dict(found),
        "outputs": dict(outputs),
        "inputs": [
            {
                "role": role,
                "folder": str(folder.resolve()),
                "bytes": sum(file.bytes for file in inputs[role]),
                "files": [asdict(file) for file in inputs[role]],
            }
            for role, folder in request.inputs.items()
        ],
        "packages": package_versions(_PACKAGES),
        **times,
    }


def tasks_name(roles: Mapping[str, Any] | Sequence[str]) -> str:
    """The `<tasks>` of outputs: the merged models' roles in model order, such as `instruct_math`."""
    return "_".join(roles)


def read_record(path: Path) -> dict[str, Any]:
    """A merge record. Raises UserError when the file is not one of a format known here."""
    record = read_json_object(path, "give the merge_record.json of a merged model")
    if record.get("format") != RECORD_FORMAT or not {"parameters", "inputs", "fingerprint", "outputs"} <= record.keys():
        raise UserError(f"{path}: is not a merge record of this version; give a merged model's {RECORD_FILE}")
    return record


def request_from_record(path: Path, moved: Mapping[str, Path]) -> MergeRequest:
    """The merge that a record describes; `moved` gives the folders that now lie elsewhere, by role."""
    record = read_record(path)
    try:
        parameters = parameters_from_fields(record["parameters"])
        folders = {entry["role"]: Path(entry["folder"]) for entry in record["inputs"]}
        unknown = moved.keys() - folders.keys()
        if unknown:
            raise UserError(f"{path}: this merge has no {sorted(unknown)[0]} model; leave that option out")
        folders.update(moved)
        pretrained = folders.pop(PRETRAINED)
        request = MergeRequest(pretrained, folders, parameters)
        parameters.check(len(folders))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is not a complete merge record ({error}); give an unchanged one") from None
    return request


def check_against_record(path: Path, inputs: Mapping[str, Sequence[InputFile]]) -> None:
    """Raise UserError, naming the first file, unless the inputs are those that the record was made with."""
    record = read_record(path)
    for role, files in inputs.items():
        recorded = {name: file["xxh3_128"] for name, file in _recorded_files(record, role).items()}
        _check_same(path, role, recorded, {file.name: file.xxh3_128 for file in files})


def check_sizes_against_record(path: Path, request: MergeRequest) -> None:
    """The same by the files' names and sizes alone, which takes no time."""
    record = read_record(path)
    for role, folder in request.inputs.items():
        recorded = {name: file["bytes"] for name, file in _recorded_files(record, role).items()}
        _check_same(path, role, recorded, {file.name: file.stat().st_size for file in list_input_files(folder)})


def _check_same(path: Path, role: str, recorded: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    for name in sorted(recorded.keys() | present.keys()):
        if recorded.get(name) != present.get(name):
            raise UserError(
                f"{path}: {role} model's {name} is not the file that the record was made with; "
                "give the folder with the original"
            )


def is_same_merge(record: Mapping[str, Any], request: MergeRequest) -> bool:
    """Whether a record describes this very merge of these very inputs.

    A file whose size and time of change are as recorded counts as unchanged; else its content decides.
    """
    if record["parameters"] != json.loads(json.dumps(request.parameters.to_fields())):
        return False
    if len(record["inputs"]) != len(request.inputs):
        return False
    touched = False
    for role, folder in request.inputs.items():
        recorded = _recorded_files(record, role)
        present = {path.name: path.stat() for path in list_input_files(folder)}
        if recorded.keys() != present.keys():
            return False
        touched |= any(
            (file["bytes"], file["modified_ns"]) != (present[name].st_size, present[name].st_mtime_ns)
            for name, file in recorded.items()
        )
    if not touched:
        return True
    with ExitStack() as stack:
        inputs = fingerprint_inputs(request, open_models(request, stack))
    return all(
        _recorded_files(record, role)[file.name]["xxh3_128"] == file.xxh3_128
        for role, files in inputs.items()
        for file in files
    )


def open_models(request: MergeRequest, stack: ExitStack) -> list[CheckpointFolder]:
    """All folders of a merge, the pretrained model's first, open until `stack` closes them."""
    from model_merging_methods.checkpoints.adapted_folder import (
        AdaptedFolder,  # with numba, which command lines do without
    )

    pretrained = stack.enter_context(CheckpointFolder(request.pretrained))
    finetuned = [
        AdaptedFolder(folder, pretrained)
        if is_adapter_folder(folder)
        else stack.enter_context(CheckpointFolder(folder))
        for folder in request.finetuned.values()
    ]
    return [pretrained, *finetuned]


def _recorded_files(record: Mapping[str, Any], role: str) -> dict[str, dict[str, Any]]:
    """A record's input files of one role, by name; none where the record is not whole."""
    for entry in record["inputs"]:
        if isinstance(entry, dict) and entry.get("role") == role:
            files = entry.get("files", ())
            if all({"name", "bytes", "modified_ns", "xxh3_128"} <= file.keys() for file in files):
                return {file["name"]: file for file in files}
    return {}
