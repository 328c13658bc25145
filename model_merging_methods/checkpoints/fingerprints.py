"""Fingerprints of weights: of what tensors hold, whatever file layout they come in (`utils.content_hashes`)."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import xxhash

from model_merging_methods.checkpoints.checkpoint_folder import CheckpointFolder
from model_merging_methods.checkpoints.stored_tensors import StoredTensor
from utils.content_hashes import STRETCH, FileStates, keep_digests, recall_digests, tensors_hash

DIGEST_SIZE = 16  # bytes, of xxh3_128

ReadValues = Callable[[np.ndarray, int, int], None]  # fills a buffer with the stored values start … stop − 1


def stretch_digest(values: np.ndarray) -> np.ndarray:
    """The digest of a stretch's bytes (uint8), as uint8."""
    return np.frombuffer(xxhash.xxh3_128_digest(values), np.uint8)


def tensor_digest(stretches: np.ndarray) -> str:
    """The digest of a tensor, in hexadecimal, from those of its stretches: uint8 [stretches, 16]."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(stretches))


def read_tensor_digest(stored: StoredTensor, read: ReadValues, stretch: int = STRETCH) -> str:
    """The digest of a stored tensor, from reading it; `stretch` is another length of its stretches."""
    buffer = np.empty(min(stretch, stored.numel) * stored.item_size, np.uint8)
    digests = np.empty((-(-stored.numel // stretch), DIGEST_SIZE), np.uint8)
    for row, start in zip(digests, range(0, stored.numel, stretch), strict=True):
        stop = min(start + stretch, stored.numel)
        values = buffer[: (stop - start) * stored.item_size]
        read(values, start, stop)
        row[:] = stretch_digest(values)
    return tensor_digest(digests)


def weight_file_fingerprints(
    model: CheckpointFolder,
    matters: Callable[[str], bool],
    states: FileStates,
    read_since: float,
    digests: Mapping[str, str] | None = None,
) -> dict[Path, str]:
    """A fingerprint of every weight file: of its tensors' names, dtypes, shapes, and of the contents of those that
    matter.

    `digests` were taken from reading the tensors since the time `read_since`, the files being in these `states`. Others
    come from the cache or else from reading the tensors; the cache gets all.
    """

    def digest(name: str) -> str:
        return read_tensor_digest(model.tensors[name], lambda *place: model.read_into(place[0], name, *place[1:]))

    fingerprints = {}
    for file in model.files:
        stored = {name: tensor for name, tensor in model.tensors.items() if tensor.file == file}
        cached = recall_digests(states.get(file))
        known = {**cached, **{name: value for name, value in (digests or {}).items() if name in stored}}
        missing = [name for name in stored if matters(name) and name not in known]
        with ThreadPoolExecutor() as pool:
            known |= zip(missing, pool.map(digest, missing), strict=True)
        if known != cached:
            keep_digests(states.get(file), known, read_since)
        fingerprints[file] = tensors_hash(
            (name, tensor.dtype, tensor.shape, known[name] if matters(name) else None)
            for name, tensor in stored.items()
        )
    return fingerprints
