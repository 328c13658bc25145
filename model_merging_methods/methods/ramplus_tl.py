"""RAM+, tensor-local: RAM with amplified changes of a single model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.method import About, Sees, Tensors, merging_method

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(
    paper="Yuan et al. 2026, arXiv 2601.13572; as in mergekit",
    sees=Sees.TENSOR,
    models=(1, None),
    memory=lambda m, n, k: (k + 4) * m * n,
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
    active = [delta.abs() > epsilon for delta in x.deltas]
    count = sum(mask.float() for mask in active).clamp(min=1)
    total = 0
    for delta, mask in zip(x.deltas, active, strict=True):
        is_shared = count > 1
        shared = int((mask & is_shared).sum())
        unshared = int(mask.sum()) - shared
        factor = 1 + r * min(shared / max(unshared, epsilon), ram_alpha) if unshared else 1.0
        total = total + (delta / count).where(is_shared, delta * factor) * mask
    return x.base + total
