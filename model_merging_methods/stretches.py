"""Elementwise functions of whole tensors, computed in stretches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

STRETCH = 1 << 15  # intermediate results of this many values stay in a CPU's cache


def in_stretches(
    function: Callable[[list[Tensor]], Tensor], tensors: Sequence[Tensor], out: Tensor | None = None
) -> Tensor:
    """An elementwise function of tensors of one shape: float32, in that shape. `function` gets them flat, in stretches.
    `out` may be one of them.

    Intermediate results take little memory, even in float64, and the CPU works several times as fast.
    """
    result = tensors[0].new_empty(tensors[0].numel()) if out is None else out.view(-1)
    stretches = zip(*(tensor.flatten().split(STRETCH) for tensor in tensors), strict=True)
    for part, stretch in zip(result.split(STRETCH), stretches, strict=True):
        part.copy_(function(list(stretch)))
    return result.view_as(tensors[0])
