"""The files of a merge's inputs, and hashes of everything in them that the merge depends on.

A weight file's hash covers its tensors, not the layout of the file (`utils.content_hashes`).
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

import numpy as np

from model_merging_methods.checkpoints.checkpoint_folder import CheckpointFolder
from model_merging_methods.checkpoints.tensor_names import is_never_loaded, without_wrappers
from model_merging_methods.checkpoints.vocabulary_matrices import holds_equal, is_vocabulary_matrix
from model_merging_methods.kernels.stored_dtypes import is_floating
from model_merging_methods.merge_request import PRETRAINED, MergeRequest, list_input_files
from utils.content_hashes import (
    FileOnRecord,
    FileStates,
    bytes_hash,
    keep_digests,
    read_tensor_digest,
    recall_digests,
    tensors_hash,
)
from utils.weight_files import is_adapter_folder


def read_fingerprints(request: MergeRequest) -> dict[str, list[FileOnRecord]]:
    """The files of every folder of `request.folders`, by role, with the hashes of their contents. Tensors without a
    cached hash are read."""
    states, since = request.input_states(), time.time()
    with ExitStack() as stack:
        models = {
            role: stack.enter_context(CheckpointFolder(folder))
            for role, folder in request.folders.items()
            if not is_adapter_folder(folder)
        }
        return fingerprint_inputs(request, models, states, since)


def fingerprint_inputs(
    request: MergeRequest,
    models: Mapping[str, CheckpointFolder],
    states: FileStates,
    read_since: float,
    digests: Mapping[Path, Mapping[str, str]] = MappingProxyType({}),
) -> dict[str, list[FileOnRecord]]:
    """The same with models opened by role; adapters need not be.

    `digests` are the digests, by folder and name, of tensors that were read after the time `read_since` from files in
    these `states`.
    """
    files = {}
    for role, folder in request.folders.items():
        weights = {}
        if not is_adapter_folder(folder):
            needed = _needed_values(request, models, role)
            weights = _weight_file_hashes(models[role], needed, states, read_since, digests.get(folder, {}))
        files[role] = [
            FileOnRecord(
                file.relative_to(folder).as_posix(), file.stat().st_size, weights.get(file) or bytes_hash(file)
            )
            for file in list_input_files(folder)
        ]
    return files


def _needed_values(request: MergeRequest, models: Mapping[str, CheckpointFolder], role: str) -> Callable[[str], bool]:
    """Whether the merge depends on the values of a model's tensor, not only on its name, dtype and shape."""
    if request.recipe is not None:
        return lambda name: not request.recipe.leaves_out(role, without_wrappers(name))
    base, parameters = models[PRETRAINED], request.parameters
    base_names = {without_wrappers(name): name for name in base.tensors}
    reads_all_of_base = parameters.reads_base or any(map(is_adapter_folder, request.folders.values()))

    def needed(name: str) -> bool:
        merged = without_wrappers(name)
        copied = not is_floating(models[role].tensors[name].dtype) or parameters.excludes(merged)
        if role != PRETRAINED:
            return not copied or merged not in base_names or _is_tied(base, base_names[merged])
        return reads_all_of_base or copied or is_never_loaded(merged, base.config) or _is_tied(base, name)

    return needed


def _is_tied(model: CheckpointFolder, name: str) -> bool:
    """Whether a vocabulary matrix repeats another one, so that both are one in the merged model."""
    if not is_vocabulary_matrix(name):
        return False
    others = [other for other in model.tensors if is_vocabulary_matrix(other) and other != name]
    return any(holds_equal(model, name, other) for other in others)


def _weight_file_hashes(
    model: CheckpointFolder,
    needed: Callable[[str], bool],
    states: FileStates,
    read_since: float,
    digests: Mapping[str, str],
) -> dict[Path, str]:
    """A hash of every weight file: of its tensors' names, dtypes, shapes, and of the values that are needed.

    Digests that are neither given nor cached are computed. All of them go into the cache.
    """

    def digest(name: str) -> str:
        stored = model.tensors[name]

        def read(values: np.ndarray, first: int) -> None:
            start = first // stored.item_size
            model.read_into(values, name, start, start + values.size // stored.item_size)

        return read_tensor_digest(stored, read)

    hashes = {}
    for file in model.files:
        tensors = {name: tensor for name, tensor in model.tensors.items() if tensor.file == file}
        cached = recall_digests(states.get(file))
        known = {**cached, **{name: value for name, value in digests.items() if name in tensors}}
        missing = [name for name in tensors if needed(name) and name not in known]
        with ThreadPoolExecutor() as pool:
            known |= zip(missing, pool.map(digest, missing), strict=True)
        if known != cached:
            keep_digests(states.get(file), known, read_since)
        hashes[file] = tensors_hash(
            (name, tensor.dtype, tensor.shape, known[name] if needed(name) else None)
            for name, tensor in tensors.items()
        )
    return hashes
