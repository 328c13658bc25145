"""Multi-SLERP: a spherical mean of any number of models, in one step."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from model_merging_methods.grams import norms
from model_merging_methods.method import About, PerModel, Sees, Value, merging_method
from utils.errors import UserError

# Rounding in the Gram matrix alone makes a mean direction of length 0 this long.
_NOISE = 3e-8


@merging_method(
    paper="mergekit, multislerp",
    sees=Sees.GRAM,
    models=(1, None),
    reads_base=lambda options: options["task_vectors"],
    takes_ratios=True,
    check=lambda options: check(**options),
)
def multislerp(
    gram: np.ndarray,
    *,
    weight: Annotated[PerModel, About("weight of each model")] = 1.0,
    task_vectors: Annotated[bool, About("average task vectors, not weights")] = True,
    normalize_weights: Annotated[bool, About("divide the weights by their sum")] = True,
    eps: Annotated[float, About("added to norms; a shorter mean direction counts as none", low=0)] = 1e-8,
) -> np.ndarray:
    """Average the directions of the models or task vectors, and give the result their mean length.

    Each parameter is one vector. Two opposite vectors are averaged linearly; for more, directions that cancel are an
    error. mergekit adds a step along the mean of the tangents. It is zero except for rounding, and left out here.
    """
    if len(weight) == 1:
        return np.ones(1)
    w = normalized(weight) if normalize_weights else np.array(weight)
    lengths = norms(gram)
    if not lengths.any():
        return np.zeros(len(w))
    shares = w / (lengths + eps) if eps else w / np.where(lengths > 0, lengths, 1.0)
    squared_mean = shares @ gram @ shares
    if squared_mean < max(eps, _NOISE) ** 2:
        if len(w) == 2:
            return w
        raise UserError(f"multislerp: the directions of these {len(w)} models cancel in a parameter; change --weight")
    return shares / np.sqrt(squared_mean) * (w @ lengths)


def check(weight: PerModel, normalize_weights: bool, **others: Value) -> None:
    if normalize_weights and len(weight) > 1:  # a single model is kept as it is
        normalized(weight)


def normalized(weight: PerModel) -> np.ndarray:
    """The weights divided by their sum. Raises UserError if that is 0."""
    w = np.array(weight)
    if not w.sum():
        raise UserError("multislerp: the weights sum to 0; change --weight or switch normalize_weights off")
    return w / w.sum()
