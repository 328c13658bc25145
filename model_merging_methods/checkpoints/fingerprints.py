"""Fingerprints of weights: of what tensors hold, whatever file layout they come in.

A tensor's digest is made of the digests of its stretches of STRETCH values, so that it can be taken from
what a merge reads anyway, by several threads in any order.
"""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import xxhash

from model_merging_methods.checkpoints.checkpoint_folder import CheckpointFolder
from model_merging_methods.checkpoints.stored_tensors import StoredTensor

STRETCH = 1 << 19  # values
DIGEST_SIZE = 16  # bytes, of xxh3_128
_READ_AT_ONCE = 1 << 22  # bytes

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
    model: CheckpointFolder, digests: Mapping[str, str], matters: Callable[[str], bool]
) -> dict[Path, str]:
    """A fingerprint of every weight file: of its tensors' names, dtypes, shapes, and of the contents of those that
    matter. Digests that are not in `digests` yet come from reading the tensors."""

    def digest(name: str) -> str:
        return read_tensor_digest(model.tensors[name], lambda *place: model.read_into(place[0], name, *place[1:]))

    missing = [name for name in model.tensors if matters(name) and name not in digests]
    with ThreadPoolExecutor() as pool:
        known = {**digests, **dict(zip(missing, pool.map(digest, missing), strict=True))}
    fingerprints = {}
    for file in model.files:
        contents = [
            [name, stored.dtype, stored.shape, known[name] if matters(name) else None]
            for name, stored in model.tensors.items()
            if stored.file == file
        ]
        fingerprints[file] = xxhash.xxh3_128_hexdigest(json.dumps(contents).encode())
    return fingerprints


def small_file_fingerprint(path: Path) -> str:
    """The digest of a file's bytes, in hexadecimal."""
    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_READ_AT_ONCE):
            digest.update(chunk)
    return digest.hexdigest()
