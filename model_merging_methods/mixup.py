"""M3's interpolation ratios: drawn from a Dirichlet (for two models a Beta) distribution, or given."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.errors import UserError


@dataclass(frozen=True)
class Mixup:
    """M3's ratios, and the α that they were drawn with (None if they were given).

    by_layer: for two models, points of λ from the first layer to the last; `ratios` then hold before the layers.
    """

    ratios: tuple[float, ...]
    alpha: float | None = None
    by_layer: tuple[float, ...] = ()

    def at(self, x: float) -> "Mixup":
        """The ratios at position x of the layers, from 0 to 1: linear between the points."""
        place = x * (len(self.by_layer) - 1)
        j = min(int(place), len(self.by_layer) - 2)
        f = place - j
        return Mixup(two_model_ratios((1 - f) * self.by_layer[j] + f * self.by_layer[j + 1]))

    @property
    def is_drawn(self) -> bool:
        """Whether the ratios depend on the seed. α <= 0 always means the first model alone."""
        return self.alpha is not None and self.alpha > 0


def draw_ratios(alpha: float, number_of_models: int, seed: int) -> tuple[float, ...]:
    """Draw M3's ratios from Dirichlet(α, …, α): for two models (λ, 1 − λ) with λ ~ Beta(α, α).

    α <= 0 means λ = 1: the first model alone, as in the paper's code. The draw depends on `seed` alone.
    """
    if not math.isfinite(alpha):
        raise UserError(f"--alpha {alpha}: give a finite number (0.5 in the paper)")
    if alpha <= 0:
        return (1.0, *[0.0] * (number_of_models - 1))
    drawn = np.random.default_rng(seed).dirichlet([alpha] * number_of_models)
    if not sum_to_one(drawn):  # the gamma variables behind the draw add up to infinity
        raise UserError(f"--alpha {alpha}: is too large to draw from; all ratios are equal from 1e300 on, so give that")
    if number_of_models == 2:
        return two_model_ratios(float(drawn[0]))
    return tuple(float(ratio) for ratio in drawn)


def given_ratios(mixup_lambda: Sequence[float], number_of_models: int) -> tuple[float, ...]:
    """The ratios of `--mixup_lambda`: λ for two models, or one ratio for each of K models.

    Raises UserError for a ratio outside [0, 1], another number of ratios, or a sum other than 1.
    """
    option = "--mixup_lambda " + " ".join(map(str, mixup_lambda))
    if not all(0 <= ratio <= 1 for ratio in mixup_lambda):
        raise UserError(f"{option}: give ratios between 0 and 1")
    if len(mixup_lambda) == 1 and number_of_models == 2:
        return two_model_ratios(mixup_lambda[0])
    if len(mixup_lambda) != number_of_models:
        wanted = "one ratio, or two" if number_of_models == 2 else f"{number_of_models} ratios"
        raise UserError(f"{option}: {number_of_models} models are merged, give {wanted} that sum to 1")
    if not sum_to_one(mixup_lambda):
        raise UserError(f"{option}: the ratios sum to {sum(mixup_lambda):g}, make them sum to 1")
    return two_model_ratios(mixup_lambda[0]) if number_of_models == 2 else tuple(mixup_lambda)


def ratios_by_layer(points: Sequence[float], number_of_models: int) -> Mixup:
    """The ratios of `--ratio_by_layer`: λ at two points or more, from the first layer to the last."""
    option = "--ratio_by_layer " + " ".join(map(str, points))
    if number_of_models != 2:
        raise UserError(f"{option}: is for two models, not {number_of_models}; use --mixup_lambda")
    if len(points) < 2 or not all(0 <= ratio <= 1 for ratio in points):
        raise UserError(f"{option}: give two ratios or more between 0 and 1")
    return Mixup(two_model_ratios(points[0]), by_layer=tuple(points))


def two_model_ratios(mixup_lambda: float) -> tuple[float, float]:
    """(λ, 1 − λ), the second computed in double precision."""
    return (mixup_lambda, 1 - mixup_lambda)


def sum_to_one(ratios: Sequence[float]) -> bool:
    """Whether ratios sum to 1, within the rounding of six digits; never if one is NaN."""
    return abs(sum(ratios) - 1) <= 1e-6
