"""The record of a merge, used to repeat it and to recognise its finished folder."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from model_merging_methods.merge_parameters import MergeParameters, parameters_from_fields
from model_merging_methods.merge_request import (
    PRETRAINED,
    MergeRequest,
    NamedRecipe,
    list_input_files,
    tasks_name,
)
from utils.content_hashes import FileOnRecord, content_hash
from utils.errors import UserError
from utils.json_files import check_shape, read_json_object
from utils.machine import package_versions
from utils.model_folders import hub_source

RECORD_FILE = "merge_record.json"
CARD_FILE = "README.md"
RECORD_FORMAT = 3
READABLE_FORMATS = (2, RECORD_FORMAT)
FINGERPRINT_FORMAT = 2  # a merge keeps its fingerprint while everything that its bytes depend on stays the same

_PACKAGES = ("torch", "numpy", "safetensors", "transformers", "tokenizers")


@dataclass(frozen=True)
class InputOnRecord:
    """A model that was merged. One that an earlier document of the recipe made has no files, but a record."""

    role: str
    folder: str
    files: list[FileOnRecord]
    made_by: dict[str, Any] | None = None


@dataclass(frozen=True)
class MixupOnRecord:
    """M3's ratios."""

    weights: list[float]
    alpha: float | None
    by_layer: list[float] | None = None


@dataclass(frozen=True)
class ParametersOnRecord:
    """The parameters of a merge. Records from before methods had their own options lack `options`."""

    method: str
    mask: dict[str, Any] | None
    mixup: MixupOnRecord | None
    seed: int
    dtype: str | None
    exclude_param_names_regex: list[str]
    options: dict[str, Any] | None = None
    config_from: str | None = None


@dataclass(frozen=True)
class RecordShape:
    """The fields of a record that are read again. Records of format 2 have only sizes as `outputs`."""

    format: int
    tasks_name: str
    name: str
    fingerprint: str
    parameters: ParametersOnRecord
    inputs: list[InputOnRecord]
    outputs: list[FileOnRecord] | dict[str, int]


def list_output_files(folder: Path, known: Mapping[str, str]) -> list[FileOnRecord]:
    """The files of a merged model, with the `known` hashes of its weights. Without the card, which people edit."""
    return [
        FileOnRecord(
            path.relative_to(folder).as_posix(), path.stat().st_size, known.get(path.name) or content_hash(path)
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (RECORD_FILE, CARD_FILE)
    ]


def find_damage(target: Path, record: Mapping[str, Any]) -> str | None:
    """The first difference between a merged folder and what the merge wrote; None for an undamaged folder."""
    outputs = record["outputs"]
    if isinstance(outputs, dict):  # format 2
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


def merge_fingerprint(
    parameters: MergeParameters,
    inputs: Mapping[str, Sequence[FileOnRecord] | str],
    recipe: Mapping[str, Any] | None = None,
) -> str:
    """A hash of everything that the merged weights depend on. Merges share it only if their weights are the same.
    `inputs`: the files of each model, or the fingerprint of the merge that makes it."""
    contents = {
        role: files if isinstance(files, str) else {file.name: file.xxh3_128 for file in files}
        for role, files in inputs.items()
    }
    hashed = [FINGERPRINT_FORMAT, parameters.fingerprint_fields(), contents, *([recipe] if recipe else [])]
    text = json.dumps(hashed, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def make_record(
    request: MergeRequest,
    inputs: Mapping[str, Sequence[FileOnRecord]],
    found: Mapping[str, Any],
    times: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of `merge_record.json`, except its `outputs` and `tokenizer_from`.

    `inputs`: the files of each folder of `request.folders`. `found` holds results of the merge's passes (thresholds,
    vocabulary, comparison), `times` its start and duration.
    """
    parameters, recipe = request.parameters, request.recipe and request.recipe.fields
    made = {role: _record_of_made(of_role) for role, of_role in request.made.items()}
    contents = {role: made[role]["fingerprint"] if role in made else inputs[role] for role in request.inputs}
    return {
        "format": RECORD_FORMAT,
        "tasks_name": tasks_name(request.roles),
        "name": request.run_name,
        "fingerprint": merge_fingerprint(parameters, contents, recipe),
        "merging_method_name": parameters.merging_method_name,
        "parameters": parameters.to_fields(),
        **({"recipe": recipe} if recipe else {}),
        "found": dict(found),
        "inputs": [
            {"role": role, "folder": str(folder), "files": [], "made_by": made[role]}
            if role in made
            else _input_on_record(role, folder, inputs[role])
            for role, folder in request.inputs.items()
        ],
        "packages": package_versions(_PACKAGES),
        **times,
    }


def _input_on_record(role: str, folder: Path, files: Sequence[FileOnRecord]) -> dict[str, Any]:
    source = hub_source(folder)
    return {
        "role": role,
        "folder": str(folder.resolve()),
        **({"hub": source} if source else {}),
        "bytes": sum(file.bytes for file in files),
        "files": [asdict(file) for file in files],
    }


def _record_of_made(request: MergeRequest) -> dict[str, Any]:
    """The record of a merge whose result is an input of another one, and is not kept."""
    from model_merging_methods.checkpoints.fingerprints import read_fingerprints  # imports numba

    return {**make_record(request, read_fingerprints(request), {}, {}), "outputs": []}


def read_record(path: Path) -> dict[str, Any]:
    """A merge record. Raises UserError, naming the field, for a file of an unknown format."""
    remedy = f"give the {RECORD_FILE} of a merged model"
    record = read_json_object(path, remedy)
    _check_record(path, record, remedy)
    return record


def _check_record(path: Path, record: Mapping[str, Any], remedy: str) -> None:
    if record.get("format") not in READABLE_FORMATS:
        raise UserError(f"{path}: is not a merge record of this version; {remedy}")
    check_shape(str(path), record, RecordShape, remedy)
    for entry in record["inputs"]:
        if entry.get("made_by"):
            _check_record(path, entry["made_by"], remedy)
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


def request_from_record(path: Path, moved: Mapping[str, Path]) -> MergeRequest:
    """The merge that a record describes. `moved` gives the folders that are now elsewhere, by role; the roles of models
    that make others are those of `MergeRequest.all_folders`."""
    request = _request(path, read_record(path), moved)
    unknown = moved.keys() - dict(request.all_folders()).keys()
    if unknown:
        raise UserError(f"{path}: this merge has no {sorted(unknown)[0]} model; remove that option")
    return request


def _request(path: Path, record: Mapping[str, Any], moved: Mapping[str, Path]) -> MergeRequest:
    parameters = _parameters(path, record)
    try:
        folders = {entry["role"]: moved.get(entry["role"], Path(entry["folder"])) for entry in record["inputs"]}
        made = {
            role: _request(path, entry["made_by"], _within(role, moved))
            for entry in record["inputs"]
            for role in [entry["role"]]
            if entry.get("made_by")
        }
        recipe = _recipe(path, record["recipe"], parameters.seed, folders, made) if record.get("recipe") else None
        request = MergeRequest(folders.pop(PRETRAINED), folders, parameters, recipe)
        request.check()
        if parameters.config_from not in (None, PRETRAINED, *folders):
            raise UserError(f"{path}: config_from is {parameters.config_from!r}, which is not a role of this merge")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is not a complete merge record ({error}); give an unchanged one") from None
    return request


def _within(role: str, moved: Mapping[str, Path]) -> dict[str, Path]:
    """The moved folders of the models that make the one with this role."""
    start = f"{role}."
    return {name.removeprefix(start): folder for name, folder in moved.items() if name.startswith(start)}


def _recipe(
    path: Path, fields: Mapping[str, Any], seed: int, roles: Iterable[str], made: Mapping[str, MergeRequest]
) -> NamedRecipe:
    if "earlier_documents" in fields:
        raise UserError(f"{path}: an earlier version made this model from several documents; run the recipe again")
    from model_merging_methods.recipes.read_recipes import recipe_from_plain, with_seed  # imports YAML
    from model_merging_methods.recipes.references import ModelReference

    recipe = with_seed(recipe_from_plain(fields["document"], path), seed)
    return NamedRecipe(recipe, {ModelReference(role): role for role in roles}, fields["adapters"], made)


def _parameters(path: Path, record: Mapping[str, Any]) -> MergeParameters:
    try:
        return parameters_from_fields(record["parameters"])
    except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: is not a complete merge record ({error}); give an unchanged one") from None


def check_against_record(path: Path, inputs: Mapping[str, Sequence[FileOnRecord]], request: MergeRequest) -> None:
    """Raise UserError, naming the first file, unless the inputs match the record, those of earlier documents too."""
    _check_contents(path, read_record(path), inputs, request)


def _check_contents(
    path: Path, record: Mapping[str, Any], inputs: Mapping[str, Sequence[FileOnRecord]], request: MergeRequest
) -> None:
    from model_merging_methods.checkpoints.fingerprints import read_fingerprints  # imports numba

    for role, files in inputs.items():
        _check_same(path, record, role, _hashes(files), "xxh3_128")
    for role, made in request.made.items():
        _check_contents(path, _made_by(record, role), read_fingerprints(made), made)


def check_sizes_against_record(path: Path, request: MergeRequest) -> None:
    """The same check, only of the files' names and sizes, which takes no time; of earlier documents' inputs too."""
    _check_sizes(path, read_record(path), request)


def _check_sizes(path: Path, record: Mapping[str, Any], request: MergeRequest) -> None:
    for role, folder in request.folders.items():
        _check_same(path, record, role, _sizes(folder), "bytes")
    for role, made in request.made.items():
        _check_sizes(path, _made_by(record, role), made)


def is_same_merge(record: Mapping[str, Any], request: MergeRequest) -> bool:
    """Whether a record describes this merge of inputs with these contents. Tensors without a cached hash are read."""
    from model_merging_methods.checkpoints.fingerprints import read_fingerprints  # imports numba

    if not _has_parameters(record, request.parameters):
        return False
    if record.get("recipe") != (request.recipe and json.loads(json.dumps(request.recipe.fields))):
        return False
    if {entry["role"] for entry in record["inputs"]} != request.inputs.keys():
        return False
    for role, folder in request.folders.items():
        if _first_difference(record, role, _sizes(folder), "bytes") is not None:
            return False
    if not all(is_same_merge(_made_by(record, role), made) for role, made in request.made.items()):
        return False
    inputs = read_fingerprints(request)
    return all(_first_difference(record, role, _hashes(files), "xxh3_128") is None for role, files in inputs.items())


def _made_by(record: Mapping[str, Any], role: str) -> Mapping[str, Any]:
    """The record of the earlier document that made a model."""
    entry = next(entry for entry in record["inputs"] if entry["role"] == role)
    return entry.get("made_by") or {}


def _has_parameters(record: Mapping[str, Any], parameters: MergeParameters) -> bool:
    """Whether a record, of any version, has these parameters."""
    try:
        return parameters_from_fields(record["parameters"]) == parameters
    except (UserError, KeyError, TypeError, ValueError, AttributeError):
        return False


def _sizes(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in list_input_files(folder)}


def _hashes(files: Sequence[FileOnRecord]) -> dict[str, str]:
    return {file.name: file.xxh3_128 for file in files}


def _check_same(path: Path, record: Mapping[str, Any], role: str, present: Mapping[str, Any], field: str) -> None:
    name = _first_difference(record, role, present, field)
    if name is not None:
        raise UserError(
            f"{path}: {role} model's {name} is not the file that the record was made with; "
            "give the folder with the original"
        )


def _first_difference(record: Mapping[str, Any], role: str, present: Mapping[str, Any], field: str) -> str | None:
    """The first file whose `field` on record differs from the `present` one; None if all are equal."""
    files = next((entry["files"] for entry in record["inputs"] if entry["role"] == role), [])
    recorded = {file["name"]: file[field] for file in files}
    # Format 2 did not record every tokenizer file.
    compared = recorded if record["format"] < RECORD_FORMAT else recorded | present
    return next((name for name in sorted(compared) if recorded.get(name) != present.get(name)), None)
