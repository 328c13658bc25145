"""M3's interpolation ratios."""

import math

import numpy as np
import pytest

from model_merging_methods.merge_request import MergeParameters, Mixup, draw_ratios, given_ratios
from utils.errors import UserError


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 5.0])
def test_lambda_follows_the_beta_distribution(alpha):
    drawn = np.array([draw_ratios(alpha, 2, seed)[0] for seed in range(4000)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert drawn.mean() == pytest.approx(0.5, abs=4 * math.sqrt(variance / len(drawn)))
    assert drawn.var() == pytest.approx(variance, rel=0.1)
    assert ((drawn >= 0) & (drawn <= 1)).all()


def test_a_seed_always_gives_the_same_ratio_and_another_another():
    assert draw_ratios(0.5, 2, 3) == draw_ratios(0.5, 2, 3)
    assert draw_ratios(0.5, 2, 3) != draw_ratios(0.5, 2, 4)


def test_three_weights_sum_to_one_and_treat_models_alike():
    drawn = np.array([draw_ratios(0.5, 3, seed) for seed in range(4000)])
    assert drawn.sum(axis=1) == pytest.approx(1)
    assert drawn.mean(axis=0) == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize("alpha", [0.0, -1.0])
def test_alpha_of_zero_or_less_means_the_first_model_alone(alpha):
    assert draw_ratios(alpha, 2, 0) == (1.0, 0.0)
    assert draw_ratios(alpha, 3, 0) == (1.0, 0.0, 0.0)


def test_given_ratios():
    assert given_ratios([0.83], 2) == (0.83, 1 - 0.83)
    assert given_ratios([0.25, 0.75], 2) == (0.25, 0.75)
    assert given_ratios([0.2, 0.3, 0.5], 3) == (0.2, 0.3, 0.5)


@pytest.mark.parametrize(
    ("ratios", "models"),
    [([1.2], 2), ([-0.1], 2), ([float("nan")], 2), ([0.5], 3), ([0.5, 0.5], 3), ([0.5, 0.6], 2), ([0.2, 0.3, 0.5], 2)],
)
def test_ratios_that_make_no_sense_are_refused(ratios, models):
    with pytest.raises(UserError, match="--mixup_lambda"):
        given_ratios(ratios, models)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 9e307, 1.7e308])
def test_an_alpha_that_cannot_be_drawn_from_is_refused(alpha):
    for models in (2, 3):
        with pytest.raises(UserError, match="--alpha"):
            draw_ratios(alpha, models, 0)


@pytest.mark.parametrize("models", [2, 3])
@pytest.mark.parametrize("alpha", [1e-310, 1e-100, 1e-3, 1e6, 1e300])
def test_extreme_alphas_draw_with_the_variance_of_the_distribution(alpha, models):
    drawn = np.array([draw_ratios(alpha, models, seed) for seed in range(2000)])
    deviation = math.sqrt((1 / models) * (1 - 1 / models) / (models * alpha + 1))
    assert drawn.sum(axis=1) == pytest.approx(1)
    assert drawn.mean(axis=0) == pytest.approx(1 / models, abs=0.04)
    assert drawn.std(axis=0) == pytest.approx(deviation, rel=0.1, abs=1e-9)


@pytest.mark.parametrize("ratios", [(0.0, 0.0), (0.5, 0.6), (float("nan"), 1.0)])
def test_ratios_that_do_not_sum_to_one_never_merge(ratios):
    with pytest.raises(UserError, match="sum to"):
        MergeParameters("average_merging", mixup=Mixup(ratios, alpha=0.5)).check(2)
