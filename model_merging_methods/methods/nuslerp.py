"""NuSLERP: SLERP with weights, on weights or on task vectors."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from model_merging_methods.grams import norms
from model_merging_methods.method import About, PerModel, Sees, merging_method

# Parallel or opposite float32 vectors have a squared sine below this. mergekit's bound is 1e-16, which only differs for
# nearly opposite vectors, where the sines are rounding noise.
_NOISE = 1e-14


@merging_method(
    paper="Shoemake 1985; mergekit, nuslerp",
    sees=Sees.GRAM,
    models=(2, 2),
    reads_base=lambda options: options["task_vectors"],
    takes_ratios=True,
    vectors=lambda options: (
        "tensor" if options["nuslerp_flatten"] else "columns" if options["nuslerp_row_wise"] else "rows"
    ),
)
def nuslerp(
    gram: np.ndarray,
    *,
    weight: Annotated[PerModel, About("weight of each model")] = 1.0,
    task_vectors: Annotated[bool, About("interpolate task vectors, not weights")] = True,
    nuslerp_flatten: Annotated[bool, About("take each parameter as one vector")] = True,
    nuslerp_row_wise: Annotated[bool, About("without nuslerp_flatten: one vector per column, not per row")] = False,
) -> np.ndarray:
    """Interpolate on the arc between two models or task vectors, as far as the second one's share of the weights.

    t = w2 / (w1 + w2), or 0.5 where the weights sum to 0. Norms below 1e-7 count as 1e-7. Parallel and opposite vectors
    are interpolated linearly. The name nuslerp_row_wise is mergekit's, although the vectors are columns.
    """
    total = sum(weight)
    t = weight[1] / total if abs(total) >= 1e-6 else 0.5
    lengths = np.maximum(norms(gram), 1e-7)
    cosine = np.clip(gram[..., 0, 1] / lengths.prod(-1), -1.0, 1.0)[..., None]
    angle = np.arccos(cosine)
    is_linear = 1 - cosine**2 <= _NOISE
    on_arc = np.sin(np.array([1 - t, t]) * angle) / np.where(is_linear, 1.0, np.sin(angle))
    return np.where(is_linear, np.array([1 - t, t]), on_arc)
