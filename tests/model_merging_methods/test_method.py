"""Which parameters a method's declaration means."""

import pytest

from model_merging_methods.merge_parameters import parameters_of
from model_merging_methods.method import is_linear_weight
from model_merging_methods.methods import METHODS


@pytest.mark.parametrize("name", ["transformer.wte.weight", "gpt_neox.embed_out.weight", "model.embed_tokens.weight"])
def test_embeddings_stay_the_bases_under_the_names_of_every_family(name):
    assert not METHODS["consensus_ta"].merges(name, (10, 4))
    assert not is_linear_weight(name, (10, 4))


@pytest.mark.parametrize(
    ("name", "shape", "is_linear"),
    [
        ("model.layers.0.self_attn.q_proj.weight", (4, 4), True),
        ("model.layers.0.self_attn.q_proj.bias", (4,), False),
        ("model.layers.0.input_layernorm.weight", (4,), False),
        ("transformer.wpe.weight", (16, 4), False),
    ],
)
def test_linear_weights_are_matrices_of_attention_and_mlp(name, shape, is_linear):
    assert is_linear_weight(name, shape) == is_linear


def test_multislerp_keeps_a_single_model_whatever_its_weight():
    parameters_of("multislerp", weight=(0.0,)).check(1)
