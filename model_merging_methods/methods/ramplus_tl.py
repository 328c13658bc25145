"""RAM+, tensor-local: RAM with amplified changes of a single model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from model_merging_methods.method import About, Sees, Tensors, Value, merging_method
from model_merging_methods.statistics import Passes, Statistics

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ChangeCounts:
    """change_counts: for each model at how many positions of a tensor it and others, and it alone, have |δ| above
    `epsilon`."""

    by_tensor: ClassVar[bool] = True
    depends_on: ClassVar[tuple[str, ...]] = ("epsilon",)

    def find(self, passes: Passes, options: Mapping[str, Value], found: Statistics) -> Statistics:
        counts = passes.change_counts(passes.merged_names)
        return Statistics(of_tensor={name: {"change_counts": own.tolist()} for name, own in counts.items()})


@merging_method(
    paper="Yuan et al. 2026, arXiv 2601.13572; as in mergekit",
    sees=Sees.BLOCK,
    models=(1, None),
    statistics=(ChangeCounts(),),
)
def ramplus_tl(
    x: Tensors,
    *,
    r: Annotated[float, About("how much changes that only one model made are amplified", low=0)] = 0.1,
    ram_alpha: Annotated[float, About("largest ratio of shared to unshared changes that counts", low=0)] = 0.2,
    epsilon: Annotated[float, About("smaller changes count as none", low=0)] = 1e-5,
) -> Tensor:
    """Average each value's change over the models that changed it, and amplify changes that only one model made.

    The factor is 1 + r · min(shared / unshared, ram_alpha), counting the model's changes in this parameter. The paper
    counts over the whole model. mergekit calls ram_alpha alpha.
    """
    active, count = activity(x.deltas, epsilon)
    factors = amplification(x.statistics["change_counts"], r, ram_alpha, epsilon)
    merged, divisor = 0, count.clamp(min=1)
    for delta, mask, factor in zip(x.deltas, active, factors, strict=True):
        merged = merged + (delta / divisor).where(count > 1, delta * factor) * mask
    return x.base + merged


def amplification(change_counts: Sequence[Sequence[float]], r: float, ram_alpha: float, epsilon: float) -> list[float]:
    """Each model's factor on changes that it alone made."""
    return [
        1 + r * min(shared / max(unshared, epsilon), ram_alpha) if unshared else 1.0
        for shared, unshared in change_counts
    ]


def activity(deltas: Sequence[Tensor], epsilon: float) -> tuple[list[Tensor], Tensor]:
    """Which models changed each value, and how many of them."""
    active = [delta.abs() > epsilon for delta in deltas]
    return active, sum(mask.float() for mask in active)


def count_changes(deltas: Sequence[Tensor], epsilon: float) -> Tensor:
    """The `ChangeCounts` of a stretch: int64 [K, 2]."""
    import torch

    active, count = activity(deltas, epsilon)
    return torch.stack([torch.stack([(mask & (count > 1)).sum(), (mask & (count == 1)).sum()]) for mask in active])
