"""TIES with the paper's steps in each tensor by itself, as in MergeLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.method import About, Sees, Tensors, merging_method
from model_merging_methods.methods.ties_merging import disjoint_merge, elect_signs, keep_sign, trimmed_task_vectors
from model_merging_methods.statistics import TrimThresholds

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(
    paper="TIES-Merging (Yadav et al. 2023, arXiv 2306.01708), as in MergeLLM",
    sees=Sees.BLOCK,
    statistics=(TrimThresholds(by_tensor=True),),
)
def ties_per_tensor_mergellm(
    x: Tensors,
    *,
    scaling_coefficient: Annotated[float, About("factor on the merged task vector")] = 1.0,
    param_value_mask_rate: Annotated[float, About("share of each task vector's values that is trimmed", 0, 1)] = 0.8,
) -> Tensor:
    """Trim each tensor of the task vectors up to its k-th smallest magnitude, elect a sign at each position, and take
    the mean of the values that have it.

    Where the trimmed values sum to 0, the sign of the sum of the tensor's elected signs counts.
    """
    trimmed = trimmed_task_vectors(x.deltas, x.statistics["trim_thresholds"])
    signs = elect_signs(trimmed, x.statistics["majority_sign"])
    return x.base + scaling_coefficient * disjoint_merge([keep_sign(tau, signs) for tau in trimmed])
