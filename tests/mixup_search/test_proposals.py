"""Which merges the draws of a search are."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge_llms_instruct_math_code import build_parser
from model_merging_methods.command_line import merge_parameters
from model_merging_methods.merge_parameters import Mask, MergeParameters
from scripts.mixup_search.proposals import DRAW_BY, Proposals, even_ratios, ratios_at, shares_of
from scripts.mixup_search.search_space import Values
from tests.mixup_search.small_search import space_of
from utils.errors import UserError

TIES = MergeParameters("ties_merging", mask=Mask(), seed=3)
FREE = {
    "scaling_coefficient": Values((0.5, 1.5), is_range=True),
    "weight_mask_rate": Values((0.1, 0.2, 0.4)),
    "param_value_mask_rate": Values((0.3, 0.5)),
}


def proposals(draw_by: str, num_draws: int = 12, number_of_models: int = 2, seed: int = 3, **options: Values):
    space = space_of(TIES, number_of_models, **options)
    space.check()
    found = Proposals(space, draw_by, num_draws, seed)
    found.check()
    return found


def all_weights(of: Proposals) -> np.ndarray:
    return np.array([of.propose(number).parameters.mixup.weights for number in range(of.total)])


@pytest.mark.parametrize("alpha", ["0.5", "2.0", "-1.0"])
def test_a_draw_has_the_ratio_that_the_main_job_draws_from_its_seed(alpha):
    of = proposals("mixup", seed=40, alpha=Values((float(alpha),)))
    for number in (0, 1, 7):
        words = ["--merge_instruct", "--merge_math", "--mixup", "--alpha", alpha, "--seed", str(40 + number)]
        main_job = merge_parameters(build_parser().parse_args(words), ["instruct", "math"])
        candidate = of.propose(number)
        assert candidate.parameters.mixup.weights == main_job.mixup.weights
        assert (candidate.alpha, candidate.parameters.mixup.alpha) == (float(alpha), None)


@pytest.mark.parametrize("draw_by", DRAW_BY)
@pytest.mark.parametrize("number_of_models", [2, 3])
def test_every_draw_is_a_merge_at_ratios_with_the_masks_of_all_others(draw_by, number_of_models):
    of = proposals(draw_by, number_of_models=number_of_models)
    for number in range(of.total):
        candidate = of.propose(number)
        assert (candidate.name, candidate.kind) == (f"draw {number}", "draw")
        candidate.parameters.check(number_of_models)
        assert math.fsum(candidate.parameters.mixup.weights) == pytest.approx(1)
        assert all(0 <= weight <= 1 for weight in candidate.parameters.mixup.weights)
        assert candidate.parameters.seed == 3
        assert candidate == of.propose(number)


@pytest.mark.parametrize("draw_by", ["mixup", "sobol", "optimise"])
def test_another_seed_gives_other_ratios_and_another_number_too(draw_by):
    first, other = all_weights(proposals(draw_by, seed=3)), all_weights(proposals(draw_by, seed=4))
    assert len(np.unique(first[:, 0])) == len(first)
    assert not np.isclose(first[0], other[0]).any()


def test_listed_options_come_in_all_combinations_and_ranges_anywhere():
    of = proposals("mixup", num_draws=60, **FREE)
    drawn = [of.propose(number).parameters for number in range(60)]
    pairs = [(parameters.mask.weight_mask_rate, parameters.param_value_mask_rate) for parameters in drawn]
    assert set(pairs[:6]) == {(rate, trim) for rate in (0.1, 0.2, 0.4) for trim in (0.3, 0.5)}
    assert pairs[6:12] == pairs[:6]
    scales = np.array([parameters.scaling_coefficient for parameters in drawn])
    assert ((scales >= 0.5) & (scales <= 1.5)).all()
    assert scales.mean() == pytest.approx(1, abs=4 * math.sqrt(1 / 12 / 60))


def test_listed_alphas_take_turns():
    of = proposals("mixup", alpha=Values((0.2, 5.0)))
    assert [of.propose(number).alpha for number in range(4)] == [0.2, 5.0, 0.2, 5.0]


def test_a_grid_of_two_models_goes_from_one_to_the_other_in_even_steps():
    assert all_weights(proposals("grid", num_draws=5))[:, 0].tolist() == [0, 0.25, 0.5, 0.75, 1]


@given(st.integers(3, 400))
def test_a_grid_of_three_models_is_the_finest_even_one(largest_number):
    points = even_ratios(3, largest_number)
    steps = round(1 / min(weight for point in points for weight in point if weight > 0))
    assert len(set(points)) == len(points) == math.comb(steps + 2, 2) <= largest_number < math.comb(steps + 3, 2)
    assert {(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)} <= set(points)
    assert all(math.fsum(point) == pytest.approx(1) for point in points)


def test_a_grid_is_crossed_with_listed_options():
    of = proposals("grid", num_draws=5, weight_mask_rate=Values((0.1, 0.4)))
    drawn = [of.propose(number).parameters for number in range(of.total)]
    found = [(parameters.mixup.weights[0], parameters.mask.weight_mask_rate) for parameters in drawn]
    assert found == [(i / 4, rate) for rate in (0.1, 0.4) for i in range(5)]


@pytest.mark.parametrize(
    ("draw_by", "changes", "option"),
    [
        ("grid", {"scaling_coefficient": FREE["scaling_coefficient"]}, "--scaling_coefficient"),
        ("grid", {"num_draws": 1}, "--num_draws 1"),
        ("grid", {"num_draws": 2, "number_of_models": 3}, "--num_draws 2"),
        ("grid", {"alpha": Values((0.2, 0.5))}, "--alpha"),
        ("sobol", {"alpha": Values((0.2, 0.5), is_range=True)}, "--alpha"),
        ("optimise", {"alpha": Values((0.2, 0.5))}, "--alpha"),
    ],
)
def test_what_cannot_be_drawn_from_is_refused(draw_by, changes, option):
    with pytest.raises(UserError, match=option):
        proposals(draw_by, **changes)


def test_sobol_points_spread_more_evenly_than_draws_and_treat_three_models_alike():
    ratios = np.sort(all_weights(proposals("sobol", num_draws=32))[:, 0])
    assert (np.floor(ratios * 32) == np.arange(32)).all()
    assert all_weights(proposals("sobol", num_draws=256, number_of_models=3)).mean(axis=0) == pytest.approx(
        1 / 3, abs=0.01
    )


def test_sobol_ranges_over_the_options_too():
    of = proposals("sobol", num_draws=96, **FREE)
    drawn = [of.propose(number).parameters for number in range(96)]
    for rate in (0.1, 0.2, 0.4):
        assert 24 <= sum(parameters.mask.weight_mask_rate == rate for parameters in drawn) <= 40
    assert {parameters.param_value_mask_rate for parameters in drawn} == {0.3, 0.5}
    assert np.mean([parameters.scaling_coefficient for parameters in drawn]) == pytest.approx(1, abs=0.03)


@given(st.lists(st.floats(0, 0.999), min_size=1, max_size=3))
def test_ratios_lead_back_to_their_point(shares):
    assert shares_of(ratios_at(shares)) == pytest.approx(shares, abs=1e-6)


@pytest.mark.parametrize("ratios", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_a_model_alone_has_a_point_too(ratios):
    assert ratios_at(shares_of(ratios)) == ratios


@pytest.mark.parametrize("number_of_models", [2, 3])
def test_an_optimiser_comes_nearer_to_the_best_than_chance(number_of_models):
    """The best merge: the first model at 0.3, the scale at 0.8, the second mask rate."""
    of = proposals("optimise", num_draws=40, number_of_models=number_of_models, **FREE)

    def objective(parameters: MergeParameters) -> float:
        return -(
            abs(parameters.mixup.weights[0] - 0.3)
            + abs(parameters.scaling_coefficient - 0.8)
            + (parameters.mask.weight_mask_rate != 0.2)
        )

    known = []
    for number in range(of.total):
        candidate = of.propose(number, known)
        assert candidate == of.propose(number, known)
        known.append((candidate, objective(candidate.parameters)))
    values = [value for _, value in known]
    assert np.mean(values[30:]) > np.mean(values[:10]) + 0.3
