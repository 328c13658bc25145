"""Nearswap (mergekit)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.method import About, Sees, Tensors, merging_method

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(paper="mergekit, nearswap", sees=Sees.BLOCK, models=(1, 1))
def nearswap(x: Tensors, *, t: Annotated[float, About("swap values that are closer than this", low=0)]) -> Tensor:
    """Move each value of the base towards the fine-tune's by t divided by their distance, and at most all the way."""
    theta = x.finetuned[0]
    w = (t / (x.base - theta).abs().clamp(min=1e-6)).clamp(0, 1)
    return w * theta + (1 - w) * x.base
