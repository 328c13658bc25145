"""DARE: drop values at random, and rescale the survivors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from model_merging_methods.method import About, MaskPlace, Sees, Value, mask_method
from utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def check(options: Mapping[str, Value]) -> None:
    if options["use_weight_rescale"] and options["use_l1_rescale"]:
        raise UserError("--use_l1_rescale and --use_weight_rescale are two ways to rescale; remove one of them")


@mask_method(
    paper="DARE (Yu et al. 2024, arXiv 2311.03099)",
    sees=Sees.BLOCK,
    is_random=True,
    restores_sum=lambda options: options["use_l1_rescale"],
    rounds=lambda options: not options["use_l1_rescale"],
    check=check,
)
def dare(
    values: Tensor,
    place: MaskPlace,
    *,
    weight_mask_rate: Annotated[float, About("drop rate of the mask", 0, 1)] = 0.2,
    use_weight_rescale: Annotated[bool, About("divide survivors by 1 − the drop rate")] = False,
    use_l1_rescale: Annotated[bool, About("rescale survivors to the sum of magnitudes from before")] = False,
) -> Tensor:
    """Drop each value with the probability of the drop rate, independently of the others.

    The paper divides the survivors by 1 − p. mergekit multiplies them by Σ|δ| / Σ|kept δ| over the tensor, which is
    near 1 / (1 − p).
    """
    from model_merging_methods.kernels.mask_weights import apply_mask, random_drop_mask
    from model_merging_methods.survivors import keep

    stop = place.start + values.numel()
    dropped = random_drop_mask(place.key, place.start, stop, weight_mask_rate, values.device.type)
    dropped = dropped.reshape(values.shape)
    if use_l1_rescale and weight_mask_rate > 0:
        return keep(values, ~dropped, "l1")
    return apply_mask(values, dropped, weight_mask_rate, use_weight_rescale)
