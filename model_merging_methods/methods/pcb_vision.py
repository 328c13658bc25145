"""PCB-Merging, as in its vision code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from model_merging_methods.competition import CompetitionBounds, competition_merge
from model_merging_methods.method import About, Sees, Tensors, merging_method
from model_merging_methods.task_vectors import total

if TYPE_CHECKING:
    from torch import Tensor


def agreement(deltas: Sequence[Tensor], units: Sequence[Tensor]) -> Tensor:
    """T: the sum of the signs, weighted by the clipped magnitudes."""
    return total([delta.sign() * u for delta, u in zip(deltas, units, strict=True)])


@merging_method(
    paper="PCB-Merging (Du et al. 2024, arXiv 2410.02396), its vision code",
    sees=Sees.BLOCK,
    statistics=(CompetitionBounds(agreement),),
)
def pcb_vision(
    x: Tensors,
    *,
    att_ratio: Annotated[float, About("share of each model's scores that count", 0, 1)] = 0.1,
    scaling_coefficient: Annotated[float, About("factor on the merged task vector")] = 1.0,
) -> Tensor:
    """Weight each value by how large it is within its model and how well it agrees with the others.

    The agreement of a position is the sum of the signs, weighted by the clipped magnitudes. A model's scores are
    clipped to the largest share of all its values.
    """
    return x.base + scaling_coefficient * competition_merge(x, agreement)
