"""The record of a merge: enough to make the same model again, and to tell whether a folder is that model."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from model_merging_methods.checkpoints.checkpoint_folder import CheckpointFolder
from model_merging_methods.checkpoints.fingerprints import weight_file_fingerprints
from model_merging_methods.checkpoints.tensor_names import is_never_loaded, without_wrappers
from model_merging_methods.checkpoints.vocabulary_matrices import holds_equal, is_vocabulary_matrix
from model_merging_methods.kernels.stored_dtypes import is_floating
from model_merging_methods.merge_parameters import MergeParameters, parameters_from_fields
from utils.content_hashes import FileOnRecord, FileStates, bytes_hash, content_hash, file_states
from utils.custom_code import code_files
from utils.errors import UserError
from utils.json_files import check_shape, read_json_object
from utils.package_versions import package_versions
from utils.tokenizer_files import tokenizer_files
from utils.weight_files import adapter_files, index_file, is_adapter_folder, weight_files

RECORD_FILE = "merge_record.json"
CARD_FILE = "README.md"
RECORD_FORMAT = 3
READABLE_FORMATS = (2, RECORD_FORMAT)
FINGERPRINT_FORMAT = 2  # a merge keeps its fingerprint while what that depends on stays the same
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
class InputOnRecord:
    """A model that was merged."""

    role: str
    folder: str
    files: list[FileOnRecord]


@dataclass(frozen=True)
class RecordShape:
    """The fields of a record that are read again. Records of format 2 have sizes alone as `outputs`."""

    format: int
    tasks_name: str
    name: str
    fingerprint: str
    parameters: MergeParameters
    inputs: list[InputOnRecord]
    outputs: list[FileOnRecord] | dict[str, int]


def list_input_files(folder: Path) -> list[Path]:
    """The files of an input folder that a merge depends on. Raises UserError where it is not a whole model's."""
    if not folder.is_dir():
        raise UserError(f"{folder}: {'is a file, not a' if folder.exists() else 'no such'} model folder")
    files = [folder / name for name in _CONFIG_FILES if (folder / name).exists()] + tokenizer_files(folder)
    files += code_files(folder)
    if is_adapter_folder(folder):
        return [*files, *adapter_files(folder)]
    index = index_file(folder)
    return [*files, *([] if index is None else [index]), *weight_files(folder)]


def input_states(request: MergeRequest) -> FileStates:
    """The states of all files that a merge depends on, which show later whether one was changed meanwhile."""
    return file_states(file for folder in request.inputs.values() for file in list_input_files(folder))


def fingerprint_inputs(
    request: MergeRequest,
    models: Sequence[CheckpointFolder],
    states: FileStates,
    read_since: float,
    digests: Sequence[Mapping[str, str]] | None = None,
) -> dict[str, list[FileOnRecord]]:
    """The files of every input with the hashes of their contents, `models` being the opened folders, the pretrained
    model's first.

    `digests` are those of each model's tensors that were read since the time `read_since`, by name, the files being in
    these `states`."""
    files, base_names = {}, {without_wrappers(name): name for name in models[0].tensors}
    for i, (role, model) in enumerate(zip(request.inputs, models, strict=True)):
        weights = {}
        if not model.reads_pretrained:
            known = digests[i] if digests else {}
            matters = partial(_matters, request, models, i, base_names)
            weights = weight_file_fingerprints(model, matters, states, read_since, known)
        files[role] = [
            FileOnRecord(
                path.relative_to(model.folder).as_posix(),
                path.stat().st_size,
                weights.get(path) or bytes_hash(path),
            )
            for path in list_input_files(model.folder)
        ]
    return files


def _matters(
    request: MergeRequest,
    models: Sequence[CheckpointFolder],
    model: int,
    base_names: Mapping[str, str],
    name: str,
) -> bool:
    """Whether the result depends on the values of a model's tensor, not only on its name, dtype and shape.
    `base_names` maps the merged names to the pretrained model's own."""
    base, merged = models[0], without_wrappers(name)
    copied = not is_floating(models[model].tensors[name].dtype) or request.parameters.excludes(merged)
    if model:
        return not copied or merged not in base_names or _is_tied(base, base_names[merged])
    if request.parameters.reads_pretrained or any(other.reads_pretrained for other in models):
        return True
    return copied or is_never_loaded(merged, base.config) or _is_tied(base, name)


def _is_tied(model: CheckpointFolder, name: str) -> bool:
    """Whether a matrix with rows for tokens repeats another one, so that both are one in the merged model."""
    if not is_vocabulary_matrix(name):
        return False
    others = [other for other in model.tensors if is_vocabulary_matrix(other) and other != name]
    return any(holds_equal(model, name, other) for other in others)


def list_output_files(folder: Path, known: Mapping[str, str]) -> list[FileOnRecord]:
    """The files of a merged model, whose weights have the `known` hashes. The card is left out: people edit it."""
    return [
        FileOnRecord(
            path.relative_to(folder).as_posix(), path.stat().st_size, known.get(path.name) or content_hash(path)
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (RECORD_FILE, CARD_FILE)
    ]


def find_damage(target: Path, record: Mapping[str, Any]) -> str | None:
    """What is wrong with the first file of a merged model that is not as the merge wrote it; None where all are."""
    outputs = record["outputs"]
    if isinstance(outputs, dict):  # of an earlier version
        outputs = [{"name": name, "bytes": size} for name, size in outputs.items()]
        outputs.append({"name": "config.json"})
    for file in outputs:
        path = target / file["name"]
        if not path.is_file():
            return f"{path}: is missing"
        if path.stat().st_size != file.get("bytes", path.stat().st_size):
            return f"{path}: has another size than the merge wrote"
        if "xxh3_128" in file and content_hash(path) != file["xxh3_128"]:
            return f"{path}: was changed since the merge"
    return None


def merge_fingerprint(parameters: MergeParameters, inputs: Mapping[str, Sequence[FileOnRecord]]) -> str:
    """A hash of all that the merged weights depend on: merges share it only if their weights are the same."""
    contents = {role: {file.name: file.xxh3_128 for file in files} for role, files in inputs.items()}
    text = json.dumps([FINGERPRINT_FORMAT, parameters.to_fields(), contents], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def make_record(
    request: MergeRequest,
    inputs: Mapping[str, Sequence[FileOnRecord]],
    name: str,
    found: Mapping[str, Any],
    times: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of `merge_record.json`, except the files beside it and the name of their tokenizer.

    `found` holds what the merge learnt on its way (thresholds, vocabulary), `times` when and how long.
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
    """A merge record. Raises UserError, naming the field, when the file is not one of a format known here."""
    remedy = f"give a merged model's own {RECORD_FILE}"
    record = read_json_object(path, remedy)
    if record.get("format") not in READABLE_FORMATS:
        raise UserError(f"{path}: is not a merge record of this version; {remedy}")
    check_shape(str(path), record, RecordShape, remedy)
    outputs = record["outputs"]
    names = [*outputs] if isinstance(outputs, dict) else [file["name"] for file in outputs]
    names += [file["name"] for entry in record["inputs"] for file in entry["files"]]
    roles = [entry["role"] for entry in record["inputs"]]
    if len(set(roles)) < len(roles):
        raise UserError(f"{path}: names a role twice; {remedy}")
    for name in (*names, *roles):
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or name.startswith("/") or (name in roles and len(parts) > 1):
            raise UserError(f"{path}: {name!r} cannot name a file or a role; {remedy}")
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
        if parameters.config_from not in (None, PRETRAINED, *folders):
            raise UserError(f"{path}: config_from is {parameters.config_from!r}, which is not a role of this merge")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is not a complete merge record ({error}); give an unchanged one") from None
    return request


def check_against_record(path: Path, inputs: Mapping[str, Sequence[FileOnRecord]]) -> None:
    """Raise UserError, naming the first file, unless the inputs are those that the record was made with."""
    record = read_record(path)
    for role, files in inputs.items():
        _check_same(path, record, role, {file.name: file.xxh3_128 for file in files}, "xxh3_128")


def check_sizes_against_record(path: Path, request: MergeRequest) -> None:
    """The same by the files' names and sizes alone, which takes no time."""
    record = read_record(path)
    for role, folder in request.inputs.items():
        _check_same(path, record, role, _sizes(folder), "bytes")


def _sizes(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in list_input_files(folder)}


def _check_same(path: Path, record: Mapping[str, Any], role: str, present: Mapping[str, Any], field: str) -> None:
    name = _first_other(record, role, present, field)
    if name is not None:
        raise UserError(
            f"{path}: {role} model's {name} is not the file that the record was made with; "
            "give the folder with the original"
        )


def _first_other(record: Mapping[str, Any], role: str, present: Mapping[str, Any], field: str) -> str | None:
    """The first file whose `field` on record is another than the `present` one; None where all are equal."""
    recorded = {file["name"]: file[field] for file in _recorded_files(record, role)}
    # Earlier versions did not record every tokenizer file.
    compared = recorded if record["format"] < RECORD_FORMAT else recorded | present
    return next((name for name in sorted(compared) if recorded.get(name) != present.get(name)), None)


def is_same_merge(record: Mapping[str, Any], request: MergeRequest) -> bool:
    """Whether a record describes this very merge of these very inputs, by their contents.

    Tensors whose hashes are not cached are read.
    """
    if record["parameters"] != json.loads(json.dumps(request.parameters.to_fields())):
        return False
    if {entry["role"] for entry in record["inputs"]} != request.inputs.keys():
        return False
    for role, folder in request.inputs.items():
        if _first_other(record, role, _sizes(folder), "bytes") is not None:
            return False
    states, since = input_states(request), time.time()
    with ExitStack() as stack:
        inputs = fingerprint_inputs(request, open_models(request, stack), states, since)
    return all(
        _first_other(record, role, {file.name: file.xxh3_128 for file in files}, "xxh3_128") is None
        for role, files in inputs.items()
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


def _recorded_files(record: Mapping[str, Any], role: str) -> list[dict[str, Any]]:
    """A record's input files of one role."""
    return next((entry["files"] for entry in record["inputs"] if entry["role"] == role), [])
