"""Numba, brought in without SciPy's linear algebra: no kernel has any, and it would make every merge start half a
second later."""

import sys

# None is what makes an import fail; numba takes that for a machine without SciPy.
_hidden = "scipy.linalg" not in sys.modules
if _hidden:
    sys.modules["scipy.linalg"] = None
try:
    import numba.np.arraymath  # noqa: F401  looks for SciPy once, when it is imported
finally:
    if _hidden:
        del sys.modules["scipy.linalg"]

from numba import njit, types  # noqa: E402
from numba.extending import intrinsic  # noqa: E402

__all__ = ["intrinsic", "njit", "types"]
