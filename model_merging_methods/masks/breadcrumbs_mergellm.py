"""Model Breadcrumbs as MergeLLM counts: drop the smallest and the largest values, but keep equal ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.largest_magnitudes import kth_smallest
from model_merging_methods.method import About, Largest, MaskPlace, Sees, mask_method

if TYPE_CHECKING:
    from torch import Tensor


def kept(count: int, *, density: float, low: float) -> tuple[Largest, Largest]:
    """All from one order statistic on, and among these those above another, which are dropped."""
    dropped_below = int(count * low)
    dropped_above = int(count * (1 - density)) - dropped_below
    if dropped_above >= count:
        return Largest(0), Largest(0)
    return Largest(count - max(dropped_below, 1) + 1, "all"), Largest(max(dropped_above, 0) + 1, "none")


@mask_method(paper="Davari and Belilovsky 2023, arXiv 2312.06795; as in MergeLLM", sees=Sees.TENSOR, keeps=kept)
def breadcrumbs_mergellm(
    values: Tensor,
    place: MaskPlace,
    *,
    density: Annotated[float, About("share of the values that is kept", 0, 1)],
    low: Annotated[float, About("share of the values that is dropped as too small", 0, 1)],
) -> Tensor:
    """Keep the magnitudes of each parameter between two of its order statistics, both included.

    With l = int(low · n) and h = int((1 − density) · n) − l, these are the l-th and the (n − h)-th smallest of n
    magnitudes. All magnitudes equal to one of them are kept. l = 0 keeps the smallest, and h < 0 the largest.
    """
    magnitudes = values.abs()
    count = values.numel()
    dropped_below = int(count * low)
    dropped_above = int(count * (1 - density)) - dropped_below
    if dropped_above >= count:
        return values * 0
    smallest = kth_smallest(magnitudes, max(dropped_below, 1))
    largest = kth_smallest(magnitudes, count - max(dropped_above, 0))
    return values * ((magnitudes >= smallest) & (magnitudes <= largest))
