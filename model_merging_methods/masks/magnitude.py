"""Drop the smallest values of each tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.largest_magnitudes import kth_smallest
from model_merging_methods.method import About, Largest, MaskPlace, Sees, mask_method

if TYPE_CHECKING:
    from torch import Tensor


def kept(count: int, *, weight_mask_rate: float, **_: object) -> tuple[Largest, Largest]:
    """All above the int(n · p)-th smallest magnitude; none of these is dropped."""
    return Largest(count - int(count * weight_mask_rate) + 1, "none"), Largest(0)


@mask_method(
    paper="as in DARE's code (Yu et al. 2024, arXiv 2311.03099)",
    sees=Sees.TENSOR,
    keeps=kept,
    rounds=lambda options: True,
)
def magnitude(
    values: Tensor,
    place: MaskPlace,
    *,
    weight_mask_rate: Annotated[float, About("drop rate of the mask", 0, 1)] = 0.2,
    use_weight_rescale: Annotated[bool, About("divide survivors by 1 − the drop rate")] = False,
) -> Tensor:
    """Drop the values of a tensor up to its int(n · p)-th smallest magnitude; equal ones are all dropped."""
    from model_merging_methods.kernels.mask_weights import apply_mask

    magnitudes = values.abs()
    rank = int(values.numel() * weight_mask_rate)
    dropped = magnitudes <= (kth_smallest(magnitudes, rank) if rank else -1.0)
    return apply_mask(values, dropped, weight_mask_rate, use_weight_rescale)
