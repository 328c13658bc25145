"""mergekit's recorded recipes: those that it takes are read and planned, the others refused with their line and key.

The recipes are those of the folder in the environment variable GOLDEN_RECIPES; else all of them where they are beside
the repository; else those in tests/golden/mergekit_yaml.
"""

import os
from pathlib import Path

import pytest

from model_merging_methods.recipes.checks import check_vocabulary_sizes
from model_merging_methods.recipes.read_recipes import read_recipes
from tests.model_merging_methods.recipes.recipe_texts import LAYERS, planned
from utils.errors import UserError

ROOT = Path(__file__).parents[3]
_PLACES = (ROOT.parent / "shared" / "golden" / "mergekit_yaml", ROOT / "tests" / "golden" / "mergekit_yaml")
GOLDEN = Path(os.environ.get("GOLDEN_RECIPES") or next(place for place in _PLACES if place.is_dir()))
VOCABULARY_SIZES = {"$F32/code_im": 63}  # the others have 61 tokens

# The line and key of what is wrong.
REFUSED = {
    "bad_della_epsilon": (3, "epsilon"),
    "bad_dtype": (5, "dtype"),
    "bad_layer_range": (3, "layer_range"),
    "bad_linear_unlisted_base": (1, "weight"),
    "bad_missing_weight": (2, "weight"),
    "bad_model_stock_two_inputs": (1, "models"),
    "bad_models_and_slices": (4, "slices"),
    "bad_multi_circular": (1, "name"),
    "bad_multi_two_unnamed": (6, "name"),
    "bad_slerp_three_models": (1, "models"),
    "bad_slerp_without_t": (1, "t"),
    "bad_slice_lengths": (2, "layer_range"),
    "bad_ties_without_base": (1, "base_model"),
    "bad_two_tokenizers": (6, "tokenizer"),
    "bad_unknown_method": (4, "merge_method"),
    "bad_vocabulary_sizes": (4, "model"),
    "misspelt_option_ignored": (4, "densty"),
}
NAMES = sorted(file.stem for file in GOLDEN.glob("*.yml"))


def read_and_plan(file):
    plans = []
    for recipe in read_recipes(file):
        check_vocabulary_sizes(recipe, {model: VOCABULARY_SIZES.get(model.path, 61) for model in recipe.models})
        plans.append(planned(recipe, LAYERS))
    return plans


@pytest.mark.parametrize("name", [name for name in NAMES if name not in REFUSED])
def test_recipes_of_mergekit_are_read_unchanged(name):
    *_, result = read_and_plan(GOLDEN / f"{name}.yml")
    assert {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} <= result.keys()


@pytest.mark.parametrize("name", [name for name in NAMES if name in REFUSED])
def test_bad_recipes_are_refused_with_line_and_key(name):
    file = GOLDEN / f"{name}.yml"
    with pytest.raises(UserError) as error:
        read_and_plan(file)
    line, key = REFUSED[name]
    assert str(error.value).startswith(f"{file}:{line}: {key}: ")
    assert "\n" not in str(error.value)


def test_every_bad_recipe_is_expected_to_be_refused():
    assert {name for name in NAMES if name.startswith("bad_")} <= REFUSED.keys()
