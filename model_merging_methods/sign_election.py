"""Sign election: mergekit's consensus among task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from model_merging_methods.task_vectors import total

if TYPE_CHECKING:
    from torch import Tensor


def elect(deltas: Sequence[Tensor], by: str = "sum") -> Tensor:
    """The elected sign of each position, +1 or −1: of Σ δi ("sum"), or of the number of positive minus the number of
    negative values ("count"). An even vote elects +."""
    votes = deltas if by == "sum" else [delta.sign() for delta in deltas]
    outcome = total(votes)
    return outcome.new_ones(outcome.shape).where(outcome >= 0, -1.0)


def taking_part(deltas: Sequence[Tensor], elected: Tensor) -> list[Tensor]:
    """For each task vector where it has the elected sign (bool); a value of 0 never has."""
    return [delta.sign() == elected for delta in deltas]
