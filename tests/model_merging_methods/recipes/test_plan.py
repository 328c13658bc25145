"""The plan of a recipe: which tensors are merged, how, and with which numbers."""

import pytest

from model_merging_methods.recipes.plan import plan_tensors
from model_merging_methods.recipes.read_recipes import read_recipes
from model_merging_methods.recipes.reading import read_documents
from tests.model_merging_methods.recipes.recipe_texts import llama_names, planned, read_one, write
from utils.errors import UserError

TIES = "merge_method: ties\nbase_model: base\nmodels:\n- model: a\n- model: b\n"


def test_slices_number_layers_through_and_split_the_ends(tmp_path):
    text = """
merge_method: passthrough
slices:
- sources: [{model: a, layer_range: [0, 2]}]
- sources: [{model: b, layer_range: [1, 3]}]
"""
    plan = planned(read_one(tmp_path, text))
    stacked = [str(plan[f"model.layers.{i}.mlp.down_proj.weight"].inputs[0].model) for i in range(4)]
    assert stacked == ["a", "a", "b", "b"]
    assert plan["model.layers.2.mlp.down_proj.weight"].inputs[0].name == "model.layers.1.mlp.down_proj.weight"
    assert str(plan["model.embed_tokens.weight"].inputs[0].model) == "a"
    assert {str(plan[name].inputs[0].model) for name in ("model.norm.weight", "lm_head.weight")} == {"b"}


def test_gradients_run_over_the_layers_and_ends_take_the_first_number(tmp_path):
    plan = planned(read_one(tmp_path, TIES + "parameters: {weight: [0.2, 1.0], density: 0.5}\n"))
    weights = [plan[f"model.layers.{i}.mlp.down_proj.weight"].steps.options["weight"] for i in range(3)]
    assert weights == [(0.2, 0.2), (0.6, 0.6), (1.0, 1.0)]
    assert plan["lm_head.weight"].steps.options["weight"] == (0.2, 0.2)


def test_one_layer_takes_the_last_number_of_a_gradient(tmp_path):
    plan = planned(read_one(tmp_path, TIES + "parameters: {weight: [0.2, 1.0]}\n"), layers=1)
    assert plan["model.layers.0.mlp.down_proj.weight"].steps.options["weight"] == (1.0, 1.0)


def test_the_names_of_mergekit_mean_its_algorithms(tmp_path):
    plan = planned(read_one(tmp_path, TIES.replace("ties", "dare_ties") + "parameters: {weight: 1, density: 0.25}\n"))
    steps = plan["lm_head.weight"].steps
    assert (steps.mask, steps.method) == ("dare", "ties_per_tensor")
    assert steps.mask_options == {
        "weight_mask_rate": (0.75, 0.75),
        "use_weight_rescale": False,
        "use_l1_rescale": True,
    }
    assert steps.options == {
        "weight": (1.0, 1.0),
        "scaling_coefficient": 1.0,
        "normalize": False,
        "density": (1.0, 1.0),
    }


def test_slerp_counts_from_the_base_wherever_it_is_listed(tmp_path):
    text = "merge_method: slerp\nbase_model: b\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.2}\n"
    merge = planned(read_one(tmp_path, text))["lm_head.weight"]
    assert [str(one.model) for one in merge.inputs] == ["b", "a"]
    assert merge.base is None


def test_our_masks_ratios_and_global_ties_are_in_the_language(tmp_path):
    text = """
merge_method: ties_merging
base_model: base
models:
- model: a
  parameters: {weight_mask_rate: 0.3}
- model: b
parameters: {param_value_mask_rate: 0.4, weight_mask_rate: 0.2}
mask: dare
mixup: {ratios: [0.3, 0.7]}
seed: 1
"""
    recipe = read_one(tmp_path, text)
    steps = planned(recipe)["lm_head.weight"].steps
    assert recipe.mixup.ratios == (0.3, 0.7)
    assert (steps.method, steps.options["param_value_mask_rate"]) == ("ties_merging", 0.4)
    assert (steps.mask, steps.mask_options["weight_mask_rate"]) == ("dare", (0.3, 0.2))


def test_ratios_replace_the_weights(tmp_path):
    plan = planned(read_one(tmp_path, TIES + "mixup: {ratios: [0.3, 0.7]}\n"))
    assert plan["lm_head.weight"].steps.options["weight"] == (0.3, 0.7)


def test_later_documents_use_earlier_ones_and_unused_ones_are_left_out(tmp_path):
    one = "merge_method: linear\nmodels: [{model: %s, parameters: {weight: 1}}]\n"
    text = "---\n".join([one % "y", "name: y\n" + one % "x", "name: x\n" + one % "a", "name: z\n" + one % "x"])
    assert [recipe.name for recipe in read_recipes(read_documents(write(tmp_path, text)))] == ["x", "y", None]


def test_a_model_without_output_matrix_lends_its_embeddings(tmp_path):
    recipe = read_one(tmp_path, "merge_method: karcher\nmodels: [{model: a}, {model: b}]\n")
    a, b = recipe.models
    names = {a: llama_names(), b: [name for name in llama_names() if name != "lm_head.weight"]}
    plan = {merge.name: merge for merge in plan_tensors(recipe, {a: 3, b: 3}, names)}
    assert [one.name for one in plan["lm_head.weight"].inputs] == ["lm_head.weight", "model.embed_tokens.weight"]
    names[b].remove("model.norm.weight")
    with pytest.raises(UserError, match=r"recipe.yml:2: model: b has no tensor model.norm.weight"):
        plan_tensors(recipe, {a: 3, b: 3}, names)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("parameters: {weight: {filter: mlp, value: 1}}", "4: weight: has no value for model.embed_tokens.weight"),
        ("parameters: {weight: high}", "6: weight: is 'high'; give a finite number"),
        ("paramters: {weight: 1}", "6: paramters: unknown key; did you mean parameters?"),
        ("mixup: {ratios: [0.3, 0.3]}", "6: ratios: give 2 numbers between 0 and 1 that sum to 1"),
        ("parameters: {weight: 1}\nmixup: {alpha: 1}", "6: weight: has no effect with mixup"),
        ("parameters: {weight: 1}\nseed: 1", "7: seed: has no effect"),
        ("parameters: {weight: 1}\nmask: della", "7: mask: ties and della both have a parameter density"),
        ("experts: []", "6: experts: mixtures of experts are not built; choose one of linear, slerp"),
        ("parameters: {weight: 1}\nchat_template: chatlm", "7: chat_template: chatlm is neither"),
    ],
)
def test_bad_recipes_are_refused_with_line_and_key(tmp_path, more, message):
    with pytest.raises(UserError) as error:
        planned(read_one(tmp_path, TIES + more + "\n"))
    assert str(error.value).startswith(f"{tmp_path}/recipe.yml:{message}")


@pytest.mark.parametrize("reference", ["a@b@c", "a+b+c", "a@", "+b"])
def test_models_with_too_many_parts_are_refused(tmp_path, reference):
    with pytest.raises(UserError, match=r"recipe.yml:2: model: .* must be path"):
        read_one(tmp_path, f"merge_method: linear\nmodels: [{{model: '{reference}'}}]\n")


def test_a_model_has_a_revision_and_an_adapter(tmp_path):
    text = "merge_method: karcher\nmodels: [{model: a@v1+b@v2}, {model: {model: {path: c, revision: v3}, lora: d}}]\n"
    assert [str(model) for model in read_one(tmp_path, text).models] == ["a@v1+b@v2", "c@v3+d"]
