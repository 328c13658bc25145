"""Linear: the weighted mean of models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.method import About, PerModel, Sees, Tensors, merging_method
from model_merging_methods.weighted_sums import sum_of_weights
from utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(
    paper="Wortsman et al. 2022, arXiv 2203.05482; as in mergekit",
    sees=Sees.BLOCK,
    models=(1, None),
    reads_base=False,
    takes_ratios=True,
    check=lambda options: options["normalize"] and divisor(options["weight"]),
)
def linear(
    x: Tensors,
    *,
    weight: Annotated[PerModel, About("weight of each model")] = 1.0,
    normalize: Annotated[bool, About("divide by the sum of the weights")] = True,
) -> Tensor:
    """Add the models' weighted parameters, and divide by the sum of the weights.

    The weighted additions are fused: one rounding each. The weights are summed in float32.
    """
    total = x.finetuned[0] * weight[0]
    for theta, w in zip(x.finetuned[1:], weight[1:], strict=True):
        total.add_(theta, alpha=w)
    if normalize:
        total /= total.new_full((), divisor(weight))  # GPUs multiply by the inverse of a plain number
    return total


def divisor(weight: PerModel) -> float:
    """The sum of the weights. Raises UserError if it is 0."""
    total = sum_of_weights(weight)
    if total == 0:
        raise UserError("linear: the weights sum to 0; change --weight or switch normalize off")
    return total
