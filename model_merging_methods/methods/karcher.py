"""Karcher mean: the mean on the sphere."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from model_merging_methods.grams import norms
from model_merging_methods.method import About, Sees, merging_method

# A vector opposite to the mean pulls it in no direction; nearer to opposite than this, the direction is rounding noise.
_LEAST_SINE = 1e-6
# Vectors that cancel have a mean shorter than this, which is not zero in the Gram matrix because of rounding.
_LEAST_LENGTH = 3e-8


@merging_method(
    paper="Wang, Ye and Yin 2026, arXiv 2603.04972; as in mergekit",
    sees=Sees.GRAM,
    reads_base=False,
)
def karcher(
    gram: np.ndarray,
    *,
    max_iter: Annotated[int, About("most steps", low=1)] = 10,
    tol: Annotated[float, About("angles, steps and norms below this count as 0", low=0)] = 1e-5,
) -> np.ndarray:
    """Find the direction with the least squared angles to all models, and give it their mean length.

    Each parameter is one vector. Vectors with a norm of at most tol have no direction, but count in the mean length. If
    no vector has a direction, the result is the plain mean.
    """
    lengths = norms(gram)
    has_direction = lengths > tol
    if not has_direction.any():
        return np.full(len(gram), 1 / len(gram))
    unit = np.where(has_direction, 1 / np.where(has_direction, lengths, 1.0), 0.0)
    return karcher_mean(gram * unit[:, None] * unit, has_direction, max_iter, tol) * unit * lengths.mean()


def karcher_mean(cosines: np.ndarray, taking_part: np.ndarray, max_iter: int, tol: float) -> np.ndarray:
    """The mean direction m of unit vectors ui, as coefficients of the ui."""

    def length(vector: np.ndarray) -> float:
        return np.sqrt(max(vector @ cosines @ vector, 0.0))

    m = taking_part / taking_part.sum()
    if length(m) <= max(tol, _LEAST_LENGTH):
        m = np.eye(len(m))[taking_part.argmax()]
    m = m / length(m)
    for _ in range(max_iter):
        dots = np.clip(cosines @ m, -1.0, 1.0)
        angles, sines = np.arccos(dots), np.sqrt(1 - dots**2)
        pulls = taking_part & (angles >= tol) & (sines > _LEAST_SINE)
        steps = np.where(pulls, angles / np.where(pulls, sines, 1.0), 0.0) / taking_part.sum()
        tangent = steps - (steps @ dots) * m
        step = length(tangent)
        if step <= tol:
            break
        m = np.cos(step) * m + np.sin(step) / step * tangent
        m = m / length(m)
    return m
