"""Consensus task arithmetic: task arithmetic at the positions that matter to several models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.checkpoints.vocabulary_matrices import is_vocabulary_matrix
from model_merging_methods.method import About, PerModel, Sees, Tensors, merging_method

if TYPE_CHECKING:
    from torch import Tensor


@merging_method(
    paper="Wang et al. 2024, arXiv 2405.07813",
    sees=Sees.BLOCK,
    models=(1, None),
    merges=lambda name, shape: not is_vocabulary_matrix(name),
)
def consensus_ta(
    x: Tensors,
    *,
    k: Annotated[int, About("how many models a position must matter to", low=0)] = 2,
    mask_lambda: Annotated[PerModel, About("a larger number selects fewer positions of a model", low=0)] = 0.2,
    scaling_coefficient: Annotated[float, About("factor on the merged task vector")] = 1.0,
) -> Tensor:
    """Add up the task vectors at the positions that matter to at least k models, and keep the base elsewhere.

    A position matters to model i where |δi| > λi |Σ δj − δi|, its TALL mask. k = 0 is task arithmetic. Embeddings and
    lm_head stay the base's, as in MergeBench.
    """
    total = x.deltas[0]
    for delta in x.deltas[1:]:
        total = total + delta
    votes = sum(
        (delta.abs() > (total - delta).abs() * own_lambda).float()
        for delta, own_lambda in zip(x.deltas, mask_lambda, strict=True)
    )
    return x.base + scaling_coefficient * (total * (votes >= k))
