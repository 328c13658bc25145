"""RAM: the mean over the models that changed a value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.method import About, Sees, Tensors, merging_method

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(paper="Yuan et al. 2026, arXiv 2601.13572; as in mergekit", sees=Sees.BLOCK, models=(1, None))
def ram(x: Tensors, *, epsilon: Annotated[float, About("smaller changes count as none", low=0)] = 1e-5) -> Tensor:
    """Average each value's change over the models that changed it.

    A model takes part where |δi| > epsilon. Each δi is divided by the number of models that take part, then added.
    """
    active = [delta.abs() > epsilon for delta in x.deltas]
    count = sum(mask.float() for mask in active).clamp(min=1)
    return x.base + sum(delta * mask / count for delta, mask in zip(x.deltas, active, strict=True))
