"""SLERP: spherical linear interpolation."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from model_merging_methods.grams import norms
from model_merging_methods.method import About, Sees, merging_method


@merging_method(
    paper="Shoemake 1985; as in mergekit",
    sees=Sees.GRAM,
    models=(2, 2),
    reads_base=False,
)
def slerp(
    gram: np.ndarray,
    *,
    t: Annotated[float, About("how far to go from the first model to the second", 0, 1)],
    dot_threshold: Annotated[float, About("interpolate linearly where the cosine is above this", 0, 1)] = 0.9995,
) -> np.ndarray:
    """Interpolate on the arc between two models, each tensor as one vector."""
    lengths = norms(gram)
    lengths = np.where(lengths > 1e-8, lengths, 1.0)
    cosine = np.clip(gram[0, 1] / lengths.prod(), -1.0, 1.0)
    if abs(cosine) > dot_threshold:
        return np.array([1 - t, t])
    angle = np.arccos(cosine)
    return np.array([np.sin((1 - t) * angle), np.sin(t * angle)]) / np.sin(angle)
