"""SCE: select, calculate and erase (FuseChat)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from model_merging_methods.largest_magnitudes import largest
from model_merging_methods.method import About, Sees, WholeTensor, merging_method
from model_merging_methods.sign_election import elect, taking_part
from model_merging_methods.stretches import in_stretches
from model_merging_methods.task_vectors import squared_norm
from model_merging_methods.weighted_sums import weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

_LEAST_SUM = 1e-6


@merging_method(
    paper="FuseChat (Wan et al. 2024, arXiv 2408.07990); as in mergekit",
    sees=Sees.TENSOR,
    models=(1, None),
    memory=lambda m, n, k: (k + 1.3) * m * n,
)
def sce(
    x: WholeTensor,
    *,
    select_topk: Annotated[float, About("share of the values that is merged, of those that differ", 0, 1)] = 1.0,
) -> Tensor:
    """Select the positions where task vectors vary most, elect a sign at each, and average the values that have it,
    weighted by the task vectors' mean squares.

    Exactly int(n' · select_topk) positions are selected, of equal variances the first; n' counts the positions with a
    variance above 0. If the mean squares sum to less than 1e-6, all models weigh the same. That is the case for task
    vectors of about 1e-3 and below. A single model varies nowhere: with select_topk below 1 the result is the base.
    """
    deltas = list(x.deltas)
    if select_topk < 1:
        variance = in_stretches(variance_over_models, deltas)
        dropped = largest(variance, int(int(variance.count_nonzero()) * select_topk)).logical_not_()
        del variance
        for delta in deltas:
            erase(delta, dropped)
        del delta, dropped
    weights = shares_of_mean_squares(deltas)
    mean = mean_of_elected if deltas[0].device.type != "cpu" else compiled_mean_of_elected
    merged = in_stretches(lambda stretches: mean(stretches, weights), deltas, deltas[0])
    del deltas
    return x.moved(merged)


def variance_over_models(deltas: Sequence[Tensor]) -> Tensor:
    """The variance of each position over the K models, divided by K: float64, exactly 0 where all are equal."""
    values = [delta.double() for delta in deltas]
    mean = sum(values) / len(values)
    return sum((value - mean).square() for value in values) / len(values)


def erase(delta: Tensor, dropped: Tensor) -> None:
    """Set the dropped values of a task vector to 0."""
    if delta.device.type != "cpu":
        delta.masked_fill_(dropped, 0)
        return
    from model_merging_methods.kernels import elementwise

    elementwise.erase(delta.view(-1).numpy(), dropped.view(-1).numpy())


def shares_of_mean_squares(deltas: Sequence[Tensor]) -> list[float]:
    """The mean of δi² of each model, divided by their sum; all the same if the sum is almost 0."""
    means = [squared_norm(delta) / delta.numel() for delta in deltas]
    total = sum(means)
    return [mean / total if total >= _LEAST_SUM else 1 / len(means) for mean in means]


def mean_of_elected(deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted mean of the values that have the elected sign."""
    present = [here.float() for here in taking_part(deltas, elect(deltas))]
    merged = weighted_sum([delta * here for delta, here in zip(deltas, present, strict=True)], weights)
    return merged / weighted_sum(present, weights).clamp(min=_LEAST_SUM)


def compiled_mean_of_elected(deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The same on the CPU."""
    import numpy as np
    import torch

    from model_merging_methods.kernels import elementwise

    mean = torch.empty_like(deltas[0])
    numbers = np.array(weights, np.float32), np.float32(_LEAST_SUM)
    elementwise.elected_means(torch.stack(tuple(deltas)).numpy(), *numbers, mean.numpy())
    return mean
