"""The command that saves a merge of a search, read by the main job's own parser."""

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge_llms_instruct_math_code import build_parser
from model_merging_methods.command_line import chosen_roles, merge_parameters
from model_merging_methods.merge_parameters import Mask, MergeParameters, Mixup
from model_merging_methods.mixup import two_model_weights
from scripts.mixup_search.proposals import ratios_at
from scripts.mixup_search.save_command import save_command
from scripts.mixup_search.search_space import references
from tests.mixup_search.small_search import space_of

IDENTITY = {"roles": ["instruct", "math"], "models": {"pretrained": None, "instruct": None, "math": None}}
THREE = {**IDENTITY, "roles": ["instruct", "math", "code"]}


def parsed(command: str):
    python, script, *words = shlex.split(command)
    assert (python, script) == ("python", "merge_llms_instruct_math_code.py")
    return build_parser().parse_args(words)


def merge_of(command: str) -> MergeParameters:
    options = parsed(command)
    return merge_parameters(options, chosen_roles(options))


rates = st.floats(0, 1)
masks = st.none() | st.builds(
    Mask,
    rates,
    st.booleans(),
    st.sampled_from(["random", "magnitude"]),
    st.sampled_from(["delta_weight", "finetuned_weight"]),
)


@given(
    base=st.builds(
        MergeParameters,
        st.sampled_from(["average_merging", "task_arithmetic", "ties_merging"]),
        mask=masks,
        seed=st.integers(0, 9),
        dtype=st.none() | st.just("float16"),
        exclude_param_names_regex=st.sampled_from([(), ("lm_head", r"layers\.[01]\. 'x")]),
    ),
    scale=st.floats(-10, 10),
    trim=rates,
    shares=st.none() | st.lists(rates, min_size=1, max_size=2),
)
def test_the_command_makes_the_very_merge_of_the_candidate(base, scale, trim, shares):
    space = space_of(base)
    options = {"weight_mask_rate": base.mask.weight_mask_rate} if base.mask else {}
    if base.method != "average_merging":
        options["scaling_coefficient"] = scale
    if base.method == "ties_merging":
        options["param_value_mask_rate"] = trim
    parameters = space.merge(None if shares is None else ratios_at(shares), options)
    identity = THREE if shares is not None and len(shares) == 2 else IDENTITY
    assert merge_of(save_command(identity, parameters)) == parameters


@pytest.mark.parametrize("method", ["average_merging", "task_arithmetic", "ties_merging"])
@pytest.mark.parametrize("identity", [IDENTITY, THREE])
def test_references_can_be_saved_too(method, identity):
    base = MergeParameters(method, mask=Mask(0.2, True), seed=4)
    for candidate in references(space_of(base, len(identity["roles"])), identity["roles"]):
        assert merge_of(save_command(identity, candidate.parameters)) == candidate.parameters


def test_the_models_are_those_of_the_search():
    identity = {
        **IDENTITY,
        "models": {"pretrained": "-base model", "instruct": None, "math": "org/math", "code": "unused"},
        "models_dir": "/big disk",
        "allow_unrelated": True,
    }
    options = parsed(save_command(identity, MergeParameters("average_merging", mixup=Mixup(two_model_weights(0.25)))))
    assert (options.pretrained_model, options.instruct_model, options.math_model) == ("-base model", None, "org/math")
    assert (options.models_dir, options.allow_unrelated, options.merge_only) == (Path("/big disk"), True, True)
    assert options.code_model is None
