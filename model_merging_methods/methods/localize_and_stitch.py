"""Localize-and-Stitch without data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.method import About, Sees, Tensors, merging_method
from model_merging_methods.statistics import LargestOfModel
from model_merging_methods.task_vectors import total

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(
    paper="Localize-and-Stitch (He et al. 2024, arXiv 2408.13656), dataless",
    sees=Sees.BLOCK,
    statistics=(LargestOfModel(),),
)
def localize_and_stitch(
    x: Tensors,
    *,
    sparsity: Annotated[float, About("share of each model's values that is kept", 0, 1)] = 0.1,
) -> Tensor:
    """Keep each model's largest task-vector values, and average them where several models keep one.

    Each model's threshold is over all its tensors except the input embeddings; the output embeddings count. Both keep
    the base's values. Equal values at the threshold are all kept.
    """
    masks = [
        (delta.abs() >= threshold).float()
        for delta, threshold in zip(x.deltas, x.statistics["largest_threshold"], strict=True)
    ]
    overlap = total(masks).clamp(min=1)
    stitched = [mask / overlap * delta for mask, delta in zip(masks, x.deltas, strict=True)]
    return x.base + total(stitched)
