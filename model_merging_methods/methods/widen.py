"""WIDEN: weight disentanglement into magnitudes and directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from model_merging_methods.checkpoints.vocabulary_matrices import INPUT_EMBEDDINGS
from model_merging_methods.method import About, Sees, WholeTensor, merging_method
from model_merging_methods.weighted_sums import weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

_STRETCH = 1 << 18  # values that are in float64 at a time


@merging_method(
    paper="WIDEN (Yu et al. 2024, arXiv 2408.03092), as in MergeLLM",
    sees=Sees.TENSOR,
    memory=lambda m, n, k: 3 * m * n + 10 * _STRETCH,
)
def widen(
    x: WholeTensor,
    *,
    above_average_value_ratio: Annotated[
        float, About("columns that rank higher than this times the mean are important", low=0)
    ] = 1.0,
    score_calibration_value: Annotated[float, About("score of important columns")] = 1.0,
) -> Tensor:
    """Score how much each model changed the length and the direction of each column, and add the task vectors times
    their scores.

    A column holds the weights of one input, or one token's of the input embeddings. Scores are softmaxes
    over the models of the columns' ranks within each model. A vector's values are scored by |δ| itself. Everything up
    to the scores is in float64. Columns that a model left unchanged rank lowest, in the order of their indices. Where
    either column is zero, the direction counts as unchanged.
    """
    import torch

    has_tokens = x.name.endswith(INPUT_EMBEDDINGS)

    def in_columns(theta: Tensor) -> Tensor:
        return theta.T if has_tokens else theta.flatten(0, -2)

    def scores(significance: Tensor, is_important: Tensor) -> Tensor:
        return significance.softmax(0).where(~is_important, score_calibration_value)

    def scores_of_ranks(changes: Tensor) -> Tensor:
        ranks = changes.argsort(dim=1, stable=True).argsort(dim=1)
        count = ranks.shape[1]
        return scores(ranks.double() / count, 2 * ranks > above_average_value_ratio * (count - 1))

    if len(x.shape) < 2:
        magnitudes = torch.stack([delta.double().abs() for delta in x.deltas])
        mean = magnitudes.mean(-1, keepdim=True)
        weights = scores(magnitudes, magnitudes > above_average_value_ratio * mean)
        return x.moved(weighted_sum(x.deltas, weights.float()))
    base = in_columns(x.base)
    changes = [column_changes(in_columns(theta), base) for theta in x.finetuned]
    del base
    lengths, directions = map(torch.stack, zip(*changes, strict=True))
    weights = ((scores_of_ranks(lengths) + scores_of_ranks(directions)) / 2).float()
    return x.moved(weighted_sum(x.deltas, weights.unsqueeze(-1) if has_tokens else weights))


def column_changes(theta: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """How much the length of each column changed, | |θ| − |θ0| |, and its direction, 1 − cos(θ, θ0): float64."""
    import torch

    at_once = max(1, _STRETCH // base.shape[0])
    lengths, directions = [], []
    for columns, base_columns in zip(theta.split(at_once, 1), base.split(at_once, 1), strict=True):
        (length, unit), (base_length, base_unit) = map(disentangled, (columns, base_columns))
        lengths.append((length - base_length).abs())
        # |u − u0|² / 2 is 1 − cos without the loss of digits.
        turned = (unit - base_unit).square().sum(0) / 2
        directions.append(turned.where((length > 0) & (base_length > 0), 0))
    return torch.cat(lengths), torch.cat(directions)


def disentangled(columns: Tensor) -> tuple[Tensor, Tensor]:
    """The lengths m of columns and their directions u, 0 for a column of zeros: float64."""
    columns = columns.double()
    lengths = columns.square().sum(0).sqrt()
    return lengths, columns / lengths.where(lengths > 0, 1.0)
