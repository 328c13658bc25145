"""Drop the smallest values of each tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.largest_magnitudes import kth_smallest
from model_merging_methods.method import About, MaskPlace, Sees, mask_method

if TYPE_CHECKING:
    from torch import Tensor


@mask_method(paper="as in DARE's code (Yu et al. 2024, arXiv 2311.03099)", sees=Sees.TENSOR)
def magnitude(
    values: Tensor,
    place: MaskPlace,
    *,
    weight_mask_rate: Annotated[float, About("drop rate of the mask", 0, 1)] = 0.2,
    use_weight_rescale: Annotated[bool, About("divide survivors by 1 − the drop rate")] = False,
) -> Tensor:
    """Drop the values of a tensor up to its int(n · p)-th smallest magnitude; equal ones are all dropped."""
    from model_merging_methods.kernels.mask_weights import apply_mask, magnitude_drop_mask

    rank = int(values.numel() * weight_mask_rate)
    threshold = kth_smallest(values.abs(), rank) if rank else None
    return apply_mask(values, magnitude_drop_mask(values, threshold), weight_mask_rate, use_weight_rescale)
