"""PCB-Merging's competition of parameters: within a model by magnitude, between models by agreement.

Clipping to shares (low, high) of all d values of a model clamps them between two of their order statistics, at
int(d · low) and int(d (1 − high) − 1), counted from 0. `unit` then maps the bounds to 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from model_merging_methods.method import Tensors, Value
from model_merging_methods.statistics import Passes, Statistics
from model_merging_methods.task_vectors import total

if TYPE_CHECKING:
    from torch import Tensor

Bounds = Sequence[float]
# Σ sign(δj) unit(aj), or Σ δj, from the task vectors and their units.
Agreement = Callable[[Sequence["Tensor"], Sequence["Tensor"]], "Tensor"]

_CLIPPED = 0.01  # of a model's magnitudes, at either end


@dataclass(frozen=True)
class CompetitionBounds:
    """magnitude_bounds and score_bounds: for each model the bounds that |δ| and the scores B are clipped to."""

    by_tensor: ClassVar[bool] = False
    depends_on: ClassVar[tuple[str, ...]] = ("att_ratio",)
    agreement: Agreement

    def find(self, passes: Passes, options: Mapping[str, Value], found: Statistics) -> Statistics:
        from model_merging_methods.kernels.radix_search import magnitudes_of

        names, k = passes.merged_names, passes.number_of_models
        d = sum(map(passes.numel, names))
        bounds = passes.order_statistics(names, magnitudes_of, [_ranks(d, _CLIPPED, _CLIPPED)] * k, found)
        magnitudes = Statistics({"magnitude_bounds": bounds})

        def scores_of(x: Tensors) -> Tensor:
            import torch

            return torch.stack(raw_scores(x.deltas, x.statistics["magnitude_bounds"], self.agreement)).flatten(1)

        ranks = _ranks(d, 1 - options["att_ratio"], 0)
        scores = passes.order_statistics(names, scores_of, [ranks] * k, found.plus(magnitudes))
        return magnitudes.plus(Statistics({"score_bounds": scores}))


def competition_merge(x: Tensors, agreement: Agreement) -> Tensor:
    """The merged task vector Σ ci scorei / Σ scorei, where ci is δi with its magnitude clipped."""
    magnitude_bounds = x.statistics["magnitude_bounds"]
    raw = raw_scores(x.deltas, magnitude_bounds, agreement)
    scores = [unit(b.clamp(*own), own) for b, own in zip(raw, x.statistics["score_bounds"], strict=True)]
    clipped = [delta.sign() * delta.abs().clamp(*own) for delta, own in zip(x.deltas, magnitude_bounds, strict=True)]
    weighted = total([c * score for c, score in zip(clipped, scores, strict=True)])
    return weighted / total(scores).clamp(min=1e-12)


def raw_scores(deltas: Sequence[Tensor], bounds: Sequence[Bounds], agreement: Agreement) -> list[Tensor]:
    """Bi = exp(K (unit(ai)² − 1)) · tanh(δi · T), where ai is |δi| clipped, and T the models' agreement.

    Published without the − 1, which makes all Bi smaller by one factor. `unit` removes it, and exp(K) would overflow
    from 89 models on.
    """
    units = [unit(delta.abs().clamp(*own), own) for delta, own in zip(deltas, bounds, strict=True)]
    agreed = agreement(deltas, units)
    return [(len(deltas) * (u * u - 1)).exp() * (delta * agreed).tanh() for delta, u in zip(deltas, units, strict=True)]


def unit(values: Tensor, bounds: Bounds) -> Tensor:
    """Values between bounds mapped to [0, 1]; 0 if the bounds are equal, as for a model that equals the base."""
    low, high = bounds
    return (values - low) / (high - low) if high > low else values * 0


def _ranks(d: int, low: float, high: float) -> list[int]:
    return [int(d * low), max(int(d * (1 - high) - 1), 0)]
