"""RAM+, tensor-local: RAM with amplified changes of a single model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from model_merging_methods.method import About, Sees, WholeTensor, merging_method
from model_merging_methods.stretches import STRETCH, in_stretches

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(
    paper="Yuan et al. 2026, arXiv 2601.13572; as in mergekit",
    sees=Sees.TENSOR,
    models=(1, None),
    memory=lambda m, n, k: max(k, 2) * m * n,
)
def ramplus_tl(
    x: WholeTensor,
    *,
    r: Annotated[float, About("how much changes that only one model made are amplified", low=0)] = 0.1,
    ram_alpha: Annotated[float, About("largest ratio of shared to unshared changes that counts", low=0)] = 0.2,
    epsilon: Annotated[float, About("smaller changes count as none", low=0)] = 1e-5,
) -> Tensor:
    """Average each value's change over the models that changed it, and amplify changes that only one model made.

    The factor is 1 + r · min(shared / unshared, ram_alpha), counting the model's changes in this parameter. The paper
    counts over the whole model. mergekit calls ram_alpha alpha.
    """
    import torch

    def activity(deltas: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Which models changed each value, and how many of them."""
        active = torch.stack(list(deltas)).abs() > epsilon
        return active, active.sum(0, dtype=torch.float32)

    deltas, counts = list(x.deltas), 0
    for stretches in zip(*(delta.view(-1).split(STRETCH) for delta in deltas), strict=True):
        active, count = activity(stretches)
        counts = counts + torch.stack([(active & (count > 1)).sum(1), (active & (count == 1)).sum(1)])
    factors = [
        1 + r * min(shared / max(unshared, epsilon), ram_alpha) if unshared else 1.0
        for shared, unshared in counts.T.tolist()
    ]

    def average(deltas: Sequence[Tensor]) -> Tensor:
        active, count = activity(deltas)
        total, count = 0, count.clamp(min=1)
        for delta, mask, factor in zip(deltas, active, factors, strict=True):
            total = total + (delta / count).where(count > 1, delta * factor) * mask
        return total

    merged = in_stretches(average, deltas, deltas[0])
    del deltas, stretches
    return x.moved(merged)
