"""What a search ranges over, as its options are typed, and the merges it is compared with."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_merging_methods.merge_parameters import Mask, MergeParameters, Mixup
from scripts.mixup_search.search_space import Values, parse_values, references
from tests.mixup_search.small_search import space_of
from utils.errors import UserError


def test_numbers_and_a_range_are_understood_as_typed():
    assert parse_values("alpha", ["0.5"]) == Values((0.5,))
    assert parse_values("alpha", ["-1", "0.5"]) == Values((-1.0, 0.5))
    assert parse_values("scaling_coefficient", ["0.5:1.5"]) == Values((0.5, 1.5), is_range=True)
    assert parse_values("weight_mask_rate", ["0:1"]) == Values((0.0, 1.0), is_range=True)


@pytest.mark.parametrize(
    ("option", "typed"),
    [
        ("alpha", "high"),
        ("alpha", "nan"),
        ("alpha", "inf"),
        ("alpha", "0.2 0.2"),
        ("scaling_coefficient", "1.5:0.5"),
        ("scaling_coefficient", "1:1"),
        ("scaling_coefficient", "0:inf"),
        ("scaling_coefficient", "0.5:"),
        ("scaling_coefficient", "0:1:2"),
        ("scaling_coefficient", "0:1 2"),
        ("scaling_coefficient", "0:1 2:3"),
        ("weight_mask_rate", "0.5 1.1"),
        ("weight_mask_rate", "-0.1:0.5"),
        ("param_value_mask_rate", "0.5:2"),
    ],
)
def test_values_that_make_no_sense_are_refused_by_option(option, typed):
    with pytest.raises(UserError, match=f"^--{option} {typed}: [^\n]*$"):
        parse_values(option, typed.split())


@given(st.floats(0, 1), st.floats(-10, 10), st.floats(0.001, 10))
def test_a_share_of_a_range_lies_in_it(share, low, width):
    value = Values((low, low + width), is_range=True).at(share)
    assert low <= value <= low + width


def test_listed_numbers_have_equal_parts():
    values = Values((1.0, 2.0, 4.0))
    assert [values.at(share) for share in (0, 0.3, 0.34, 0.6, 0.7, 1)] == [1, 1, 2, 2, 4, 4]


def test_a_searched_option_that_changes_nothing_is_refused():
    averaging, range_ = MergeParameters("average_merging"), Values((0.1, 0.9), is_range=True)
    for name in ("scaling_coefficient", "weight_mask_rate", "param_value_mask_rate"):
        with pytest.raises(UserError, match=f"--{name}"):
            space_of(averaging, **{name: range_}).check()
    space_of(MergeParameters("ties_merging"), param_value_mask_rate=range_, scaling_coefficient=range_).check()
    space_of(MergeParameters("average_merging", mask=Mask()), weight_mask_rate=range_).check()


def test_averaging_is_compared_with_equal_ratios_and_each_fine_tune():
    dare = MergeParameters("average_merging", mask=Mask(use_weight_rescale=True), seed=7, dtype="bfloat16")
    equal, instruct, math_alone = references(space_of(dare), ["instruct", "math"])
    assert (equal.name, instruct.name, math_alone.name) == ("equal ratios", "instruct alone", "math alone")
    assert equal.parameters == MergeParameters(
        "average_merging", mask=Mask(use_weight_rescale=True), mixup=Mixup((0.5, 0.5)), seed=7, dtype="bfloat16"
    )
    assert instruct.parameters == MergeParameters("average_merging", mixup=Mixup((1.0, 0.0)), dtype="bfloat16")
    assert math_alone.parameters == MergeParameters("average_merging", mixup=Mixup((0.0, 1.0)), dtype="bfloat16")


def test_task_arithmetic_is_compared_with_its_plain_sum_too():
    space = space_of(
        MergeParameters("task_arithmetic", scaling_coefficient=3.0),
        number_of_models=3,
        scaling_coefficient=Values((0.5, 1.5), is_range=True),
    )
    found = {candidate.name: candidate for candidate in references(space, ["instruct", "math", "code"])}
    assert list(found) == ["equal ratios", "without M3", "instruct alone", "math alone", "code alone"]
    assert found["without M3"].parameters == MergeParameters("task_arithmetic", scaling_coefficient=1.0)
    assert math.fsum(found["equal ratios"].parameters.mixup.weights) == pytest.approx(1)
    assert found["code alone"].parameters.mixup.weights == (0.0, 0.0, 1.0)


def test_a_seed_that_nothing_is_drawn_from_is_zero_as_in_the_main_job():
    unmasked = space_of(MergeParameters("ties_merging", seed=5)).merge((0.25, 0.75))
    assert unmasked == MergeParameters("ties_merging", mixup=Mixup((0.25, 0.75)), seed=0)
    masked = space_of(MergeParameters("ties_merging", mask=Mask(), seed=5)).merge((0.25, 0.75))
    assert masked.seed == 5
