"""Model Breadcrumbs: drop the smallest and the largest values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.largest_magnitudes import largest
from model_merging_methods.method import About, MaskPlace, Sees, mask_method
from model_merging_methods.survivors import keep

if TYPE_CHECKING:
    from torch import Tensor


@mask_method(paper="Davari and Belilovsky 2023, arXiv 2312.06795; as in mergekit", sees=Sees.TENSOR)
def breadcrumbs(
    values: Tensor,
    place: MaskPlace,
    *,
    density: Annotated[float, About("share of the values that is kept", 0, 1)] = 1.0,
    gamma: Annotated[float, About("share of the values that is dropped as too large", 0, 1)] = 0.01,
    rescale: Annotated[str, About("how survivors are rescaled", choices=("none", "l1"))] = "none",
) -> Tensor:
    """Drop the largest and the smallest magnitudes of each parameter.

    Of n values exactly int(density · n) are kept: those below the int(gamma · n) largest, or further up where density +
    gamma > 1. Of equal magnitudes the one with the lower flat index counts as larger. density = 1 drops nothing.
    """
    if density >= 1:
        return values
    count = values.numel()
    keeping = int(density * count)
    dropped_below = max(0, count - keeping - int(gamma * count))
    magnitudes = values.abs()
    kept = largest(magnitudes, count - dropped_below) & ~largest(magnitudes, count - dropped_below - keeping)
    return keep(values, kept, rescale)
