"""Model Stock: between the base and the mean of fine-tunes, as far as these agree."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from model_merging_methods.grams import norms
from model_merging_methods.method import About, Sees, merging_method


@merging_method(
    paper="Jang et al. 2024, arXiv 2403.19522; as in mergekit",
    sees=Sees.GRAM,
    vectors=lambda options: "rows" if options["filter_wise"] else "tensor",
)
def model_stock(
    gram: np.ndarray,
    *,
    filter_wise: Annotated[bool, About("one ratio per row of a matrix, not per parameter")] = False,
) -> np.ndarray:
    """Move from the base towards the mean of the models, the farther the smaller the angles between task vectors.

    θ0 + t · mean of δi, with t = K c / (1 + (K − 1) c) and c the mean cosine of two task vectors. A product of two
    norms below 1e-6 counts as 1e-6: for very small task vectors the base wins. t = 0 where its denominator is 0.
    """
    count = gram.shape[-1]
    lengths = norms(gram)
    cosines = np.clip(gram / np.maximum(lengths[..., :, None] * lengths[..., None, :], 1e-6), -1.0, 1.0)
    c = cosines[..., *np.triu_indices(count, 1)].mean(-1)
    denominator = 1 + (count - 1) * c
    is_zero = abs(denominator) < 1e-6
    t = np.where(is_zero, 0.0, count * c / np.where(is_zero, 1.0, denominator))
    return np.repeat(t[..., None] / count, count, axis=-1)
