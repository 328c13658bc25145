"""MagMax: at each position the task vector with the largest magnitude."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.method import About, Sees, Tensors, merging_method

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(paper="Marczak et al. 2024, arXiv 2407.06322", sees=Sees.BLOCK, models=(1, None))
def magmax(
    x: Tensors,
    *,
    scaling_coefficient: Annotated[float, About("factor on the merged task vector")] = 1.0,
) -> Tensor:
    """Take the change of largest magnitude at each position.

    Of equal magnitudes the later model's change is taken.
    """
    largest = x.deltas[0]
    for delta in x.deltas[1:]:
        largest = delta.where(delta.abs() >= largest.abs(), largest)
    return x.base + scaling_coefficient * largest
