"""M3's interpolation ratios: drawn from a Beta (or Dirichlet) distribution, or given."""

import math
from collections.abc import Sequence

import numpy as np

from utils.errors import UserError


def draw_interpolation_weights(alpha: float, number_of_models: int, seed: int) -> tuple[float, ...]:
    """w ~ Dirichlet(α, …, α) over the models: for two, (λ, 1 − λ) with λ ~ Beta(α, α).

    α <= 0 means λ = 1: the first model alone, as in the paper's code. The draw depends on `seed` alone.
    """
    if not math.isfinite(alpha):
        raise UserError(f"--alpha {alpha}: give a finite number (0.5 in the paper)")
    if alpha <= 0:
        return (1.0, *[0.0] * (number_of_models - 1))
    drawn = np.random.default_rng(seed).dirichlet([alpha] * number_of_models)
    if not sums_to_one(drawn):  # the gamma variables behind the draw add up to infinity
        raise UserError(f"--alpha {alpha}: is too large to draw from; all ratios are equal from 1e300 on, so give that")
    if number_of_models == 2:
        return two_model_weights(float(drawn[0]))
    return tuple(float(weight) for weight in drawn)


def given_interpolation_weights(mixup_lambda: Sequence[float], number_of_models: int) -> tuple[float, ...]:
    """The weights that `--mixup_lambda` asks for: λ for two models, or one weight for each of K models.

    Raises UserError for a weight outside [0, 1], another number of weights, or a sum other than 1.
    """
    option = "--mixup_lambda " + " ".join(str(weight) for weight in mixup_lambda)
    if not all(0 <= weight <= 1 for weight in mixup_lambda):
        raise UserError(f"{option}: ratios lie between 0 and 1")
    if len(mixup_lambda) == 1 and number_of_models == 2:
        return two_model_weights(mixup_lambda[0])
    if len(mixup_lambda) != number_of_models:
        wanted = "one ratio, or two" if number_of_models == 2 else f"{number_of_models} ratios"
        raise UserError(f"{option}: {number_of_models} models are merged, give {wanted} that sum to 1")
    if not sums_to_one(mixup_lambda):
        raise UserError(f"{option}: the ratios sum to {sum(mixup_lambda):g}, make them sum to 1")
    return two_model_weights(mixup_lambda[0]) if number_of_models == 2 else tuple(mixup_lambda)


def sums_to_one(ratios: Sequence[float]) -> bool:
    """Whether ratios sum to 1, up to what six digits leave open; never where one is NaN."""
    return abs(sum(ratios) - 1) <= 1e-6


def two_model_weights(mixup_lambda: float) -> tuple[float, float]:
    """(λ, 1 − λ), the second formed in double precision."""
    return (mixup_lambda, 1 - mixup_lambda)
