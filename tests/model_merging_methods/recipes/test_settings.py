"""A parameter's value for a tensor: gradients, filters and levels, against numbers computed by hand."""

import pytest

from model_merging_methods.recipes.reading import read_documents
from model_merging_methods.recipes.settings import first_value, interpolated, read_setting
from tests.model_merging_methods.recipes.recipe_texts import write
from utils.errors import UserError


def setting(folder, text, kind=float):
    [document] = read_documents(write(folder, f"p: {text}"))
    return read_setting(document.value["p"], kind)


@pytest.mark.parametrize(
    ("values", "x", "value"),
    [
        ((0.7,), 0.4, 0.7),
        ((0.1, 0.7, 0.4, 1.0), 0.0, 0.1),
        ((0.1, 0.7, 0.4, 1.0), 0.5, 0.5 * 0.7 + 0.5 * 0.4),
        ((0.1, 0.7, 0.4, 1.0), 1.0, 1.0),
        ((1.0, 0.0), 0.25, 0.75),
        ((False, True), 0.5, False),
        ((False, True), 1.0, True),
        ((False, True, False), 0.5, True),
    ],
)
def test_gradients_are_linear_between_their_numbers(values, x, value):
    assert interpolated(values, x) == value


def test_gradients_are_rounded_as_in_mergekit():
    # (1 − f) a + f b, not a + f (b − a), which differs here in the last digit
    a, b, f = 0.1, 0.7, 0.3
    assert (1 - f) * a + f * b != a + f * (b - a)
    assert interpolated((a, b), f) == (1 - f) * a + f * b


def test_the_first_filter_that_the_name_contains_counts(tmp_path):
    found = setting(tmp_path, "[{filter: mlp, value: [0, 1]}, {filter: layers.1., value: 0.3}, {value: 5}]")
    assert found.at("model.layers.1.mlp.down_proj.weight", 0.5) == 0.5
    assert found.at("model.layers.1.self_attn.q_proj.weight", 0.5) == 0.3
    assert found.at("model.layers.11.self_attn.q_proj.weight", 0.5) == 5


@pytest.mark.parametrize("everything", ["{value: 2}", "{filter: '*', value: 2}", "[{filter: '*', value: '2'}]", "2"])
def test_a_value_without_a_filter_is_for_all_tensors(tmp_path, everything):
    assert setting(tmp_path, everything).at("lm_head.weight", 0.0) == 2.0


def test_the_first_level_with_a_value_for_the_tensor_wins(tmp_path):
    own = setting(tmp_path, "{filter: q_proj, value: 0.9}")
    shared = setting(tmp_path, "0.1")
    assert first_value([own, None, shared], "q_proj.weight", 0)[0] == 0.9
    assert first_value([own, None, shared], "k_proj.weight", 0)[0] == 0.1
    assert first_value([own, None], "k_proj.weight", 0) is None


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("[]", float, "p: is an empty list"),
        ("[0.1, high]", float, "p: is 'high'; give a finite number"),
        ("[0.1, true]", float, "p: is True; give a finite number"),
        ("[1, 2]", int, "p: takes one whole number, not a gradient"),
        ("[l1, none]", str, "p: takes one text, not a gradient"),
        ("{filter: mlp}", float, "p: a filter has no value"),
        ("{filter: 3, value: 1}", float, "filter: is 3; give a text"),
        ("{fliter: mlp, value: 1}", float, "fliter: unknown key; did you mean filter?"),
        ("[{filter: mlp, value: {value: 1}}]", float, "p: is a mapping"),
        ("[0.5, {value: 1}]", float, "p: is 0.5; give a mapping"),
        ("[[1, 2], 3]", float, "p: is a list"),
    ],
)
def test_bad_settings_are_refused(tmp_path, text, kind, message):
    with pytest.raises(UserError) as error:
        setting(tmp_path, text, kind)
    assert str(error.value).startswith(f"{tmp_path}/recipe.yml:1: {message}")
