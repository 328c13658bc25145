"""Norms from Gram matrices."""

import numpy as np


def norms(gram: np.ndarray) -> np.ndarray:
    """The norms |xi| of vectors with the inner products `gram` [..., K, K]."""
    return np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
