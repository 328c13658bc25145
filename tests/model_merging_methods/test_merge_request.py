"""M3's ratios, drawn and given. test_command_line.py tests the names of merges."""

import math

import numpy as np
import pytest

from model_merging_methods.merge_parameters import parameters_of
from model_merging_methods.merge_request import run_name, tasks_name
from model_merging_methods.mixup import Mixup, draw_ratios, given_ratios
from utils.errors import UserError


@pytest.mark.parametrize("models", [2, 3])
@pytest.mark.parametrize("alpha", [1e-310, 1e-3, 0.1, 0.5, 5.0, 1e6, 1e300])
def test_draws_have_the_mean_and_variance_of_the_dirichlet_distribution(alpha, models):
    drawn = np.array([draw_ratios(alpha, models, seed) for seed in range(4000)])
    deviation = math.sqrt((1 / models) * (1 - 1 / models) / (models * alpha + 1))
    assert drawn.sum(axis=1) == pytest.approx(1) and ((drawn >= 0) & (drawn <= 1)).all()
    assert drawn.mean(axis=0) == pytest.approx(1 / models, abs=4 * deviation / math.sqrt(len(drawn)) + 1e-9)
    assert drawn.std(axis=0) == pytest.approx(deviation, rel=0.1, abs=1e-9)


def test_a_seed_always_gives_the_same_ratio():
    assert draw_ratios(0.5, 2, 3) == draw_ratios(0.5, 2, 3) != draw_ratios(0.5, 2, 4)


@pytest.mark.parametrize("alpha", [0.0, -1.0])
def test_alpha_of_zero_or_less_means_the_first_model_alone(alpha):
    assert draw_ratios(alpha, 2, 0) == (1.0, 0.0)
    assert draw_ratios(alpha, 3, 0) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 9e307, 1.7e308])
def test_an_alpha_that_cannot_be_drawn_from_is_refused(alpha):
    for models in (2, 3):
        with pytest.raises(UserError, match="--alpha"):
            draw_ratios(alpha, models, 0)


def test_given_ratios_are_kept():
    assert given_ratios([0.83], 2) == (0.83, 1 - 0.83)
    assert given_ratios([0.25, 0.75], 2) == (0.25, 0.75)
    assert given_ratios([0.2, 0.3, 0.5], 3) == (0.2, 0.3, 0.5)


@pytest.mark.parametrize(
    ("ratios", "models"),
    [([1.2], 2), ([-0.1], 2), ([float("nan")], 2), ([0.5], 3), ([0.5, 0.5], 3), ([0.5, 0.6], 2), ([0.2, 0.3, 0.5], 2)],
)
def test_given_ratios_that_make_no_sense_are_refused(ratios, models):
    with pytest.raises(UserError, match="--mixup_lambda"):
        given_ratios(ratios, models)


@pytest.mark.parametrize("ratios", [(0.0, 0.0), (0.5, 0.6), (float("nan"), 1.0)])
def test_ratios_that_do_not_sum_to_one_never_merge(ratios):
    with pytest.raises(UserError, match="sum to"):
        parameters_of("average_merging", mixup=Mixup(ratios, alpha=0.5)).check(2)


def test_names_of_many_models_fit_into_a_file_name_and_differ():
    ratios = [tuple((1 + step * (i == 3)) / (20 + step) for i in range(20)) for step in (0, 1)]
    names = {run_name(parameters_of("average_merging", mixup=Mixup(own)), 20) for own in ratios}
    assert len(names) == 2 and all(len(name.encode()) <= 200 for name in names)
    roles = [f"a-fine-tune-of-a-long-name-{i}" for i in range(20)]
    assert len(tasks_name(roles)) <= 200 and tasks_name(roles) != tasks_name(roles[::-1])
