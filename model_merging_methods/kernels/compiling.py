"""How kernels are compiled, and kept on the disk.

numba keeps compiled kernels beside the sources, and compiles one again when its own file changes, but not when a kernel
that it calls does. So the files' names hold a digest of all kernels' sources.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

CHUNK = 1024  # values
ZERO, ONE = np.float32(0), np.float32(1)

_SOURCES = sorted(Path(__file__).parent.glob("*.py"))
_DIGEST = hashlib.sha256(b"".join(source.read_bytes() for source in _SOURCES)).hexdigest()[:12]


def _compile(kernel: Callable, **options: Any) -> Callable:
    kernel.__qualname__ += f"_{_DIGEST}"
    return njit(cache=True, nogil=True, error_model="numpy", **options)(kernel)


def exact(kernel: Callable) -> Callable:
    """Compile a kernel whose arithmetic is neither reordered nor fused.

    It counts no references to arrays, which took a third of the time. A kernel that makes or returns an array, or calls
    one that returns one, needs the counts: `exact_with_arrays`.
    """
    return _compile(kernel, _nrt=False)


def exact_with_arrays(kernel: Callable) -> Callable:
    """`exact`, for kernels that make or return arrays."""
    return _compile(kernel, _nrt=True)


def approximate(kernel: Callable) -> Callable:
    """Compile a kernel of sums that no merged value depends on: they may be reordered and fused."""
    return _compile(kernel, _nrt=False, fastmath={"reassoc", "contract"})
