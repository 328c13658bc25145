"""The tensors in one weight file: names, dtypes, shapes and places, from a safetensors header or a pickled file.

No model is loaded. A pickled file (`.bin`) is mapped into memory by torch with `weights_only=True`, which runs no
code; for it alone is torch imported.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_merging_methods.kernels.stored_dtypes import ITEM_BITS, ITEM_SIZES, SHORT_NAMES
from utils.errors import UserError
from utils.stand_ins import stand_in_remedy

_LONGEST_HEADER = 100_000_000  # bytes; the safetensors format's own limit


@dataclass(frozen=True)
class StoredTensor:
    """One tensor's place: `offset` bytes into `file`, in row-major order; or, of a pickled file, its bytes as
    torch mapped them into memory. `dtype` is safetensors' name of it, such as BF16."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0
    mapped: np.ndarray | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def item_size(self) -> int:
        """Bytes a value."""
        return ITEM_SIZES[self.dtype]


def read_weight_file(file: Path) -> dict[str, StoredTensor]:
    """Every tensor in `file`.

    Raises UserError, naming the file, for one that is truncated or otherwise not what its header says, that holds
    anything but tensors, or that only stands for the weights.
    """
    remedy = stand_in_remedy(file)
    if remedy:
        raise UserError(f"{file}: {remedy}")
    return read_pickled(file) if file.suffix == ".bin" else read_header(file)


def read_pickled(file: Path) -> dict[str, StoredTensor]:
    """Every tensor in a file of torch.save, mapped into memory."""
    try:
        state = _load_pickled(file)
        return {name: _mapped_tensor(file, tensor) for name, tensor in state.items()}
    except Exception as error:  # torch raises errors of a dozen kinds, and the remedy is the same for all
        raise UserError(
            f"{file}: cannot be read as pickled weights alone ({type(error).__name__}); download it again, or save "
            "the model again as safetensors (save_pretrained)"
        ) from error


def _load_pickled(file: Path) -> dict:
    import torch

    with open(file, "rb") as opened:
        is_zip = opened.read(4) == b"PK\x03\x04"
    # The format of torch before 1.6 cannot be mapped: such files are read whole.
    return torch.load(file, map_location="cpu", mmap=is_zip, weights_only=True)


def _mapped_tensor(file: Path, tensor) -> StoredTensor:
    import torch

    dtype = SHORT_NAMES[str(tensor.dtype).removeprefix("torch.")]
    mapped = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return StoredTensor(file, dtype, tuple(tensor.shape), mapped=mapped)


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor in a safetensors file, in file order, checked against the file's size."""

    def broken(why: str) -> UserError:
        return UserError(f"{file}: truncated or corrupt safetensors file ({why}); download it again")

    size = file.stat().st_size
    with open(file, "rb") as opened:
        prefix = opened.read(8)
        if len(prefix) < 8:
            raise broken("shorter than a header")
        (header_size,) = struct.unpack("<Q", prefix)
        if header_size > min(size - 8, _LONGEST_HEADER):
            raise broken("the header is longer than the file")
        try:
            header = json.loads(opened.read(header_size), object_pairs_hook=_object_of_unique_names)
            tensors, end = _stored_tensors(file, header, 8 + header_size)
        except _DoubledName as doubled:
            raise broken(f"its header has {doubled} twice") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise broken("the header makes no sense") from None
    if end != size:
        raise broken(f"{size} bytes where the header describes {end}")
    return tensors


class _DoubledName(Exception):
    """A JSON object has a name twice, which Python's reader passes over."""


def _object_of_unique_names(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DoubledName(next(name for name in names if names.count(name) > 1))
    return unique


def _stored_tensors(file: Path, header: dict, data_start: int) -> tuple[dict[str, StoredTensor], int]:
    """The header's tensors in file order, and where the last one ends."""
    tensors = {}
    end = data_start
    header.pop("__metadata__", None)
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (first, last, *entry["shape"])):
            raise ValueError(name)
        stored = StoredTensor(file, entry["dtype"], tuple(entry["shape"]), data_start + first)
        if stored.offset != end or (last - first) * 8 != stored.numel * ITEM_BITS[stored.dtype]:
            raise ValueError(name)
        end = data_start + last
        tensors[name] = stored
    return tensors, end
