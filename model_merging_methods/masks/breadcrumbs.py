"""Model Breadcrumbs: drop the smallest and the largest values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.largest_magnitudes import largest
from model_merging_methods.method import About, Largest, MaskPlace, Sees, mask_method
from model_merging_methods.survivors import keep

if TYPE_CHECKING:
    from torch import Tensor


def kept(count: int, *, density: float, gamma: float, **_: object) -> tuple[Largest, Largest]:
    """All except the smallest magnitudes, and among these the largest, which are dropped."""
    if density >= 1:
        return Largest(count), Largest(0)
    keeping = int(density * count)
    above = count - max(0, count - keeping - int(gamma * count))
    return Largest(above), Largest(above - keeping)


@mask_method(
    paper="Davari and Belilovsky 2023, arXiv 2312.06795; as in mergekit",
    sees=Sees.TENSOR,
    keeps=kept,
    restores_sum=lambda options: options["rescale"] == "l1",
)
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
    all_larger, too_large = kept(values.numel(), density=density, gamma=gamma)
    magnitudes = values.abs()
    within = largest(magnitudes, all_larger.number) & ~largest(magnitudes, too_large.number)
    return keep(values, within, rescale)
