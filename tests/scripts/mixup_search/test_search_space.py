"""Options of a search, the merges it compares draws with, and the merge of each draw."""

import math
from argparse import ArgumentParser
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_merging_methods.command_line import add_merge_options, merge_parameters
from model_merging_methods.masks import MASKS
from model_merging_methods.merge_parameters import mask_of, parameters_of
from model_merging_methods.methods import METHODS
from model_merging_methods.mixup import Mixup
from scripts.mixup_search.search_space import (
    ALPHA,
    DRAW_BY,
    Proposals,
    SearchSpace,
    Values,
    even_ratios,
    parse_values,
    ratios_at,
    references,
    shares_of,
    space_from_fields,
)
from tests.scripts.mixup_search.small_search import space_of
from utils.errors import UserError

TIES = parameters_of("ties_merging", mask=mask_of(), seed=3)
OPTIONS = {
    "alpha": ALPHA,
    **METHODS["ties_merging"].options,
    **MASKS["dare"].options,
    **METHODS["consensus_ta"].options,
}
SCALES = Values((0.5, 1.5), is_range=True)
FREE = {
    "scaling_coefficient": SCALES,
    "weight_mask_rate": Values((0.1, 0.2, 0.4)),
    "param_value_mask_rate": Values((0.3, 0.5)),
}


def test_options_take_numbers_or_a_range():
    found = [parse_values(OPTIONS["scaling_coefficient"], words.split()) for words in ("0.5", "-1 0.5", "0.5:1.5")]
    assert found == [Values((0.5,)), Values((-1.0, 0.5)), SCALES]


@pytest.mark.parametrize(
    ("option", "words", "reason"),
    [
        ("alpha", "high", "give numbers"),
        ("alpha", "0.2 0.2", "twice"),
        ("scaling_coefficient", "0:inf", "finite"),
        ("scaling_coefficient", "0:1:2", "low below high"),
        ("scaling_coefficient", "0:1 2", "either numbers or one range"),
        ("weight_mask_rate", "0.5 1.1", "between 0 and 1"),
        ("k", "1 1.5", "give whole numbers"),
        ("k", "-1:2", "from 0 on"),
        ("param_value_mask_rate", "-0.1:0.5", "between 0 and 1"),
    ],
)
def test_other_values_are_refused_by_option(option, words, reason):
    with pytest.raises(UserError, match=f"^--{option} {words}: [^\n]*{reason}[^\n]*$"):
        parse_values(OPTIONS[option], words.split())


def test_shares_are_places_in_a_range_or_parts_of_a_list():
    assert [SCALES.at(share) for share in (0, 0.25, 1)] == [0.5, 0.75, 1.5]
    values = Values((1.0, 2.0, 4.0))
    assert [values.at(share) for share in (0, 0.3, 0.34, 0.6, 0.7, 1)] == [1, 1, 2, 2, 4, 4]


def test_whole_numbers_stay_whole():
    values = parse_values(OPTIONS["k"], ["1:4"])
    assert [values.at(share) for share in (0, 0.24, 0.26, 0.99, 1)] == [1, 1, 2, 4, 4]
    assert values.plain_choice == 2 and values.are_whole and not SCALES.are_whole


def test_a_varied_option_without_effect_is_refused():
    for name in FREE:
        with pytest.raises(UserError, match=f"--{name} has no effect"):
            space_of(parameters_of("average_merging"), **{name: FREE[name]}).check()
    space_of(TIES, **FREE).check()


def test_averaging_is_compared_with_equal_ratios_and_each_fine_tune():
    mask = mask_of(use_weight_rescale=True)
    dare = parameters_of("average_merging", mask=mask, seed=7, dtype="bfloat16")
    found = {one.name: one.parameters for one in references(space_of(dare), ["instruct", "math"])}
    halves, first, second = Mixup((0.5, 0.5)), Mixup((1.0, 0.0)), Mixup((0.0, 1.0))
    assert found == {
        "equal ratios": parameters_of("average_merging", mask=mask, mixup=halves, seed=7, dtype="bfloat16"),
        "instruct alone": parameters_of("average_merging", mixup=first, dtype="bfloat16"),
        "math alone": parameters_of("average_merging", mixup=second, dtype="bfloat16"),
    }


def test_task_arithmetic_is_compared_with_its_plain_sum_too():
    base = parameters_of("task_arithmetic", scaling_coefficient=3.0)
    space = space_of(base, number_of_models=3, scaling_coefficient=SCALES)
    found = {candidate.name: candidate for candidate in references(space, ["instruct", "math", "code"])}
    assert list(found) == ["equal ratios", "without M3", "instruct alone", "math alone", "code alone"]
    assert found["without M3"].parameters == parameters_of("task_arithmetic", scaling_coefficient=1.0)
    assert math.fsum(found["equal ratios"].ratios) == pytest.approx(1)
    assert found["code alone"].ratios == (0.0, 0.0, 1.0)


MAGMAX = parameters_of("magmax")


def test_a_method_without_ratios_is_compared_with_its_plain_choice_and_the_average():
    space = space_of(MAGMAX, scaling_coefficient=SCALES)
    found = {one.name: one.parameters for one in references(space, ["chat", "math"])}
    assert list(found) == ["plain choice", "average", "chat alone", "math alone"]
    assert found["plain choice"] == MAGMAX
    assert found["average"] == parameters_of("average_merging", mixup=Mixup((0.5, 0.5)))


def test_one_model_is_searched_over_options_alone():
    space = space_of(MAGMAX, number_of_models=1, scaling_coefficient=SCALES)
    space.check()
    found = {one.name: one.parameters for one in references(space, ["math"])}
    assert found == {"plain choice": MAGMAX, "math alone": parameters_of("linear")}


@pytest.mark.parametrize("draw_by", DRAW_BY)
def test_a_method_without_ratios_is_searched_over_its_options(draw_by):
    scales = Values((0.5, 1.0, 1.5)) if draw_by == "grid" else SCALES
    of = Proposals(space_of(MAGMAX, scaling_coefficient=scales), draw_by, 8, seed=3)
    of.check()
    scored = []
    for number in range(of.total):
        candidate = of.propose(number, scored)
        assert candidate.ratios is candidate.alpha is None and candidate.parameters.method == "magmax"
        scored.append((candidate, -abs(candidate.option("scaling_coefficient") - 0.8)))
    drawn = [candidate.option("scaling_coefficient") for candidate, _ in scored]
    assert drawn == [0.5, 1.0, 1.5] if draw_by == "grid" else len(set(drawn)) == 8
    assert min(drawn) >= 0.5 and max(drawn) <= 1.5
    assert of.identity()["baseline"] == "plain choice"


@pytest.mark.parametrize("draw_by", DRAW_BY)
def test_one_model_s_number_is_searched_while_the_others_stay(draw_by):
    densities = Values((0.2, 0.4, 0.8)) if draw_by == "grid" else Values((0.2, 0.8), is_range=True)
    base = parameters_of("ties_per_tensor", density=(0.5, 0.9), weight=(0.3, 0.7))
    options = {"density[0]": densities, "weight[1]": Values((0.1, 0.2))}
    space = SearchSpace(2, base, Values((0.5,)), options, without_mixup=True)
    of = Proposals(space, draw_by, 6, seed=3)
    of.check()
    scored = []
    for number in range(of.total):
        scored.append((of.propose(number, scored), 0.0))
    found = [candidate.parameters.formula_options(2) for candidate, _ in scored]
    assert all(0.2 <= first <= 0.8 and second == 0.9 for first, second in (one["density"] for one in found))
    assert {one["weight"] for one in found} == {(0.3, 0.1), (0.3, 0.2)}
    assert len({one["density"][0] for one in found}) == (3 if draw_by == "grid" else 6)
    assert space_from_fields(space.to_fields()) == space


def test_listed_options_without_ratios_are_drawn_once():
    space = space_of(MAGMAX, scaling_coefficient=Values((0.5, 1.0, 1.5)))
    of = Proposals(space, "mixup", 20, seed=0)
    assert (of.total, of.identity()["num_draws"]) == (3, 3)


def test_a_space_of_one_merge_is_refused():
    with pytest.raises(UserError, match=r"^magmax: takes no ratios to search; .*--scaling_coefficient LOW:HIGH$"):
        space_of(MAGMAX).check()


def test_a_space_without_mixup_is_stored_as_one():
    plain = SearchSpace(2, parameters_of("task_arithmetic"), Values((0.5,)), {}, without_mixup=True)
    plain.check()
    assert space_from_fields(plain.to_fields()) == plain and not plain.has_ratios
    assert "without_mixup" not in replace(plain, without_mixup=False).to_fields()


def test_weights_are_one_value_for_all_models_and_not_beside_ratios():
    weights = Values((0.5, 1.0))
    base = parameters_of("ties_per_tensor")
    with pytest.raises(UserError, match="--weight has no effect with M3's ratios"):
        space_of(base, weight=weights).check()
    space = space_of(base, density=Values((0.2, 1.0)))
    space.check()
    assert space.merge((0.3, 0.7), {"density": 0.2}).formula_options(2)["density"] == (0.2, 0.2)


def test_the_seed_is_zero_if_nothing_is_drawn_from_it():
    unmasked = space_of(parameters_of("ties_merging", seed=5)).merge((0.25, 0.75))
    assert unmasked == parameters_of("ties_merging", mixup=Mixup((0.25, 0.75)), seed=0)
    assert space_of(parameters_of("ties_merging", mask=mask_of(), seed=5)).merge((0.25, 0.75)).seed == 5


def proposals(draw_by: str, num_draws: int = 12, number_of_models: int = 2, seed: int = 3, **options: Values):
    space = space_of(TIES, number_of_models, **options)
    space.check()
    found = Proposals(space, draw_by, num_draws, seed)
    found.check()
    return found


def all_ratios(of: Proposals) -> np.ndarray:
    return np.array([of.propose(number).ratios for number in range(of.total)])


@pytest.mark.parametrize("alpha", ["0.5", "2.0", "-1.0"])
def test_a_draw_has_the_ratio_that_the_main_job_draws_from_its_seed(alpha):
    of = proposals("mixup", seed=40, alpha=Values((float(alpha),)))
    parser = ArgumentParser()
    add_merge_options(parser)
    for number in (0, 1, 7):
        words = ["--merge_instruct", "--merge_math", "--mixup", "--alpha", alpha, "--seed", str(40 + number)]
        main_job = merge_parameters(parser.parse_args(words), ["instruct", "math"])
        candidate = of.propose(number)
        assert candidate.ratios == main_job.mixup.ratios
        assert (candidate.alpha, candidate.parameters.mixup.alpha) == (float(alpha), None)


@pytest.mark.parametrize("draw_by", DRAW_BY)
@pytest.mark.parametrize("number_of_models", [2, 3])
def test_every_draw_is_a_merge_at_ratios_with_the_same_masks(draw_by, number_of_models):
    of = proposals(draw_by, number_of_models=number_of_models)
    for number in range(of.total):
        candidate = of.propose(number)
        assert (candidate.name, candidate.kind, candidate.parameters.seed) == (f"draw {number}", "draw", 3)
        candidate.parameters.check(number_of_models)
        assert math.fsum(candidate.ratios) == pytest.approx(1) and min(candidate.ratios) >= 0
        assert candidate == of.propose(number)


@pytest.mark.parametrize("draw_by", ["mixup", "sobol", "optimise"])
def test_seeds_and_numbers_determine_the_ratios(draw_by):
    first, other = all_ratios(proposals(draw_by, seed=3)), all_ratios(proposals(draw_by, seed=4))
    assert len(np.unique(first[:, 0])) == len(first)
    assert not np.isclose(first[0], other[0]).any()


def test_listed_options_take_all_combinations_and_ranges_are_uniform():
    of = proposals("mixup", num_draws=60, **FREE)
    drawn = [of.propose(number).parameters for number in range(60)]
    pairs = [
        (parameters.all_values["weight_mask_rate"], parameters.all_values["param_value_mask_rate"])
        for parameters in drawn
    ]
    assert set(pairs[:6]) == {(rate, trim) for rate in (0.1, 0.2, 0.4) for trim in (0.3, 0.5)}
    assert pairs[6:12] == pairs[:6]
    scales = np.array([parameters.values["scaling_coefficient"] for parameters in drawn])
    assert ((scales >= 0.5) & (scales <= 1.5)).all()
    assert scales.mean() == pytest.approx(1, abs=4 * math.sqrt(1 / 12 / 60))
    alphas = proposals("mixup", alpha=Values((0.2, 5.0)))
    assert [alphas.propose(number).alpha for number in range(4)] == [0.2, 5.0, 0.2, 5.0]


def test_a_grid_goes_in_even_steps_through_each_combination_of_options():
    of = proposals("grid", num_draws=5, weight_mask_rate=Values((0.1, 0.4)))
    drawn = [of.propose(number) for number in range(of.total)]
    found = [(candidate.ratios[0], candidate.option("weight_mask_rate")) for candidate in drawn]
    assert found == [(i / 4, rate) for rate in (0.1, 0.4) for i in range(5)]


@given(st.integers(3, 400))
def test_a_grid_of_three_models_is_the_finest_even_one(largest_number):
    points = even_ratios(3, largest_number)
    steps = round(1 / min(ratio for point in points for ratio in point if ratio > 0))
    assert len(set(points)) == len(points) == math.comb(steps + 2, 2) <= largest_number < math.comb(steps + 3, 2)
    assert {(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)} <= set(points)
    assert all(math.fsum(point) == pytest.approx(1) for point in points)


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"scaling_coefficient": SCALES}, "takes no range, such as 0.5:1.5"),
        ({"num_draws": 1}, "--num_draws 1"),
        ({"num_draws": 2, "number_of_models": 3}, "--num_draws 2"),
    ],
)
def test_ranges_and_too_few_draws_are_refused_for_a_grid(changes, option):
    with pytest.raises(UserError, match=option):
        proposals("grid", **changes)


def test_sobol_points_are_even_over_ratios_and_options():
    ratios = np.sort(all_ratios(proposals("sobol", num_draws=32))[:, 0])
    assert (np.floor(ratios * 32) == np.arange(32)).all()
    means = all_ratios(proposals("sobol", num_draws=256, number_of_models=3)).mean(axis=0)
    assert means == pytest.approx(1 / 3, abs=0.01)
    of = proposals("sobol", num_draws=96, **FREE)
    drawn = [of.propose(number) for number in range(96)]
    for name, rates in (("weight_mask_rate", (0.1, 0.2, 0.4)), ("param_value_mask_rate", (0.3, 0.5))):
        values = [candidate.option(name) for candidate in drawn]
        assert all(values.count(rate) == pytest.approx(96 / len(rates), abs=8) for rate in rates)
    assert np.mean([candidate.option("scaling_coefficient") for candidate in drawn]) == pytest.approx(1, abs=0.03)


@given(st.lists(st.floats(0, 0.999), min_size=1, max_size=3))
def test_ratios_and_points_of_the_cube_are_inverses(shares):
    assert shares_of(ratios_at(shares)) == pytest.approx(shares, abs=1e-6)
    for alone in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0), (0.0, 1.0)):
        assert ratios_at(shares_of(alone)) == alone


@pytest.mark.parametrize("number_of_models", [2, 3])
def test_the_optimiser_beats_chance(number_of_models):
    """The best merge: the first model at 0.3, the scale at 0.8, the second mask rate."""
    of = proposals("optimise", num_draws=40, number_of_models=number_of_models, **FREE)
    scored = []
    for number in range(of.total):
        candidate = of.propose(number, scored)
        assert candidate == of.propose(number, scored)
        distance = abs(candidate.ratios[0] - 0.3) + abs(candidate.option("scaling_coefficient") - 0.8)
        scored.append((candidate, -distance - (candidate.option("weight_mask_rate") != 0.2)))
    values = [value for _, value in scored]
    assert np.mean(values[30:]) > np.mean(values[:10]) + 0.3
