"""Drop values, and rescale the survivors."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Sums of magnitudes below this are not rescaled.
_LEAST_SUM = 1e-7


def keep(values: Tensor, kept: Tensor, rescale: str, keep_probability: Tensor | None = None) -> Tensor:
    """`values` where `kept`, and 0 elsewhere, rescaled.

    rescale: "none"; "inverse" divides each survivor by its `keep_probability`; "l1" multiplies all survivors by Σ|x|
    before / Σ|x| after. These sums are computed in float64.
    """
    import torch

    masked = values * kept
    if rescale == "inverse":
        return masked / keep_probability
    if rescale == "l1":
        before = float(values.abs().sum(dtype=torch.float64))
        after = float(masked.abs().sum(dtype=torch.float64))
        return masked * restoring_factor(before, after)
    return masked


def restoring_factor(before: float, after: float) -> float:
    """What the survivors are multiplied by so that their magnitudes sum to `before` again."""
    return before / after if before >= _LEAST_SUM and after >= _LEAST_SUM else 1.0
