"""Task arithmetic: the scaled sum of the task vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.method import About, PerModel, Sees, Tensors, merging_method
from model_merging_methods.weighted_sums import sum_of_weights, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(
    paper="Task arithmetic (Ilharco et al. 2023, arXiv 2212.04089)",
    sees=Sees.BLOCK,
    models=(1, None),
    takes_ratios=True,
)
def task_arithmetic(
    x: Tensors,
    *,
    scaling_coefficient: Annotated[float, About("factor on the merged task vector")] = 1.0,
    weight: Annotated[PerModel, About("factor on a model's task vector")] = 1.0,
    normalize: Annotated[bool, About("divide by the sum of the weights")] = False,
) -> Tensor:
    """Add the scaled, weighted sum of the task vectors to the base: θ0 + s · Σ wi δi."""
    merged = weighted_sum(x.deltas, weight)
    if normalize:
        merged = merged / merged.new_full((), divisor(weight))
    return x.base + scaling_coefficient * merged


def divisor(weight: PerModel) -> float:
    """The sum of the weights, or 1 if it is almost 0."""
    total = sum_of_weights(weight)
    return total if abs(total) >= 1e-8 else 1.0
