"""TIES with every step in each tensor by itself, as in mergekit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.method import About, PerModel, Sees, Tensors, merging_method
from model_merging_methods.sign_election import elect, taking_part
from model_merging_methods.statistics import LargestOfTensor
from model_merging_methods.task_vectors import total
from model_merging_methods.weighted_sums import weighted_sum

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(
    paper="TIES-Merging (Yadav et al. 2023, arXiv 2306.01708), as mergekit's ties",
    sees=Sees.BLOCK,
    models=(1, None),
    takes_ratios=True,
    statistics=(LargestOfTensor(),),
)
def ties_per_tensor(
    x: Tensors,
    *,
    weight: Annotated[PerModel, About("factor on a model's task vector")] = 1.0,
    density: Annotated[PerModel, About("share of the largest values that is kept, in each tensor", 0, 1)] = 1.0,
    scaling_coefficient: Annotated[float, About("factor on the merged task vector")] = 1.0,
    normalize: Annotated[bool, About("divide by the sum of the weights that take part")] = True,
    elect_by: Annotated[str, About("how a sign is elected", choices=("sum", "count"))] = "sum",
) -> Tensor:
    """Trim each tensor of the task vectors, elect a sign at each position by the weighted values, and take the weighted
    mean of those that have it.

    Exactly the max(1, int(density · n)) largest magnitudes are kept, of equal ones the first. A sum of exactly 0 elects
    +. A negative weight turns its model's sign.
    """
    kept = x.statistics["kept"]
    d = [_trimmed(delta, *of_model, x.start) * w for delta, of_model, w in zip(x.deltas, kept, weight, strict=True)]
    present = taking_part(d, elect(d, elect_by))
    merged = total([tau.where(here, 0) for tau, here in zip(d, present, strict=True)])
    if normalize:
        divisor = weighted_sum([here.float() for here in present], weight)
        merged = merged / divisor.where(divisor.abs() >= 1e-8, 1.0)
    return x.base + scaling_coefficient * merged


def _trimmed(delta: Tensor, threshold: float, last: int, start: int) -> Tensor:
    """δ above the threshold, and equal to it up to position `last`; 0 elsewhere."""
    magnitudes = delta.abs()
    above = delta.where(magnitudes > threshold, 0)
    if last < start:
        return above
    above[: last + 1 - start] = delta[: last + 1 - start].where(magnitudes[: last + 1 - start] >= threshold, 0)
    return above
