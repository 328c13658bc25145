"""The average of the models' weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_merging_methods.method import Sees, Tensors, merging_method
from model_merging_methods.task_vectors import mean
from model_merging_methods.weighted_sums import weighted_sum

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(
    paper="Model soups (Wortsman et al. 2022, arXiv 2203.05482)", sees=Sees.BLOCK, reads_base=False, takes_ratios=True
)
def average_merging(x: Tensors) -> Tensor:
    """Take the mean of the models' weights; under M3, Σ wi θi.

    The mean divides the sum once, as the published scripts do. Multiplying each term by a rounded 1/K differs in the
    last bit for K = 3.
    """
    if x.ratios is None:
        return mean(x.finetuned)
    return weighted_sum(x.finetuned, x.ratios)
