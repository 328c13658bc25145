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
    deltas, counts = list(x.deltas), 0
    on_cpu = deltas[0].device.type == "cpu"
    count, mean = (compiled_count, compiled_mean) if on_cpu else (count_changes, mean_of_changes)
    for stretches in zip(*(delta.view(-1).split(STRETCH) for delta in deltas), strict=True):
        counts = counts + count(stretches, epsilon)
    factors = [
        1 + r * min(shared / max(unshared, epsilon), ram_alpha) if unshared else 1.0
        for shared, unshared in counts.tolist()
    ]
    merged = in_stretches(lambda stretches: mean(stretches, epsilon, factors), deltas, deltas[0])
    del deltas, stretches
    return x.moved(merged)


def count_changes(deltas: Sequence[Tensor], epsilon: float) -> Tensor:
    """For each model at how many positions it and others, and it alone, changed a value: int64 [K, 2]."""
    import torch

    active, count = _activity(deltas, epsilon)
    return torch.stack([(active & (count > 1)).sum(1), (active & (count == 1)).sum(1)], 1)


def mean_of_changes(deltas: Sequence[Tensor], epsilon: float, factors: Sequence[float]) -> Tensor:
    """The mean of the changes of each position; a single one is multiplied by the factor of its model."""
    active, count = _activity(deltas, epsilon)
    total, count = 0, count.clamp(min=1)
    for delta, mask, factor in zip(deltas, active, factors, strict=True):
        total = total + (delta / count).where(count > 1, delta * factor) * mask
    return total


def _activity(deltas: Sequence[Tensor], epsilon: float) -> tuple[Tensor, Tensor]:
    """Which models changed each value, and how many of them."""
    import torch

    active = torch.stack(list(deltas)).abs() > epsilon
    return active, active.sum(0, dtype=torch.float32)


def compiled_count(deltas: Sequence[Tensor], epsilon: float) -> Tensor:
    """`count_changes` on the CPU."""
    import numpy as np
    import torch

    from model_merging_methods.kernels import elementwise

    counts = torch.zeros((len(deltas), 2), dtype=torch.int64)
    elementwise.count_changes(torch.stack(tuple(deltas)).numpy(), np.float32(epsilon), counts.numpy())
    return counts


def compiled_mean(deltas: Sequence[Tensor], epsilon: float, factors: Sequence[float]) -> Tensor:
    """`mean_of_changes` on the CPU."""
    import numpy as np
    import torch

    from model_merging_methods.kernels import elementwise

    mean = torch.empty_like(deltas[0])
    numbers = np.float32(epsilon), np.array(factors, np.float32)
    elementwise.means_of_changes(torch.stack(tuple(deltas)).numpy(), *numbers, mean.numpy())
    return mean
