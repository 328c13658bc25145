"""mergekit's recorded recipes: what it makes of them, we make; what it refuses or ignores, we refuse with line and key.

The recipes are those of the folder in the environment variable GOLDEN_RECIPES; else all of them where they are beside
the repository; else those in tests/golden/mergekit_yaml. Their models are in the folder `methods/models` beside it.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_merging_methods.__main__ import main
from utils.errors import UserError

ROOT = Path(__file__).parents[3]
_PLACES = (ROOT.parent / "shared" / "golden" / "mergekit_yaml", ROOT / "tests" / "golden" / "mergekit_yaml")
GOLDEN = Path(os.environ.get("GOLDEN_RECIPES") or next(place for place in _PLACES if place.is_dir()))
CASES = {case["id"]: case for case in json.loads((GOLDEN / "cases.json").read_text())}

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
    "bad_slerp_without_t": (4, "t"),
    "bad_slice_lengths": (2, "layer_range"),
    "bad_ties_without_base": (1, "base_model"),
    "bad_two_tokenizers": (6, "tokenizer"),
    "bad_unknown_method": (4, "merge_method"),
    "bad_vocabulary_sizes": (4, "model"),
    "misspelt_option_ignored": (4, "densty"),
}
MERGED = [name for name in CASES if name not in REFUSED]


def recipe_of(case: dict[str, Any], folder: Path) -> Path:
    """The case's recipe with the paths of its models."""
    models = GOLDEN.parent / "methods" / "models"
    text = (GOLDEN / case["file"]).read_text()
    file = folder / case["file"]
    file.write_text(text.replace("$F32", f"{models / 'float32'}").replace("$BF16", f"{models / 'bfloat16'}"))
    return file


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


@pytest.mark.parametrize("name", MERGED)
def test_recipes_of_mergekit_give_its_models(name, tmp_path):
    case = CASES[name]
    main(["merge", str(recipe_of(case, tmp_path)), str(tmp_path / "merged")])
    found, expected = tensors_of(tmp_path / "merged"), load_file(GOLDEN / case["expected"])
    ambiguous = load_file(GOLDEN / case["ambiguous"]) if case.get("ambiguous") else {}
    assert found.keys() == expected.keys()
    ids = AutoTokenizer.from_pretrained(tmp_path / "merged").get_vocab()
    rows = list(range(case["vocab_size"]))
    for token, row in case.get("token_ids", {}).items():  # the ids of new tokens are arbitrary in mergekit
        rows[row] = ids[token]
    for tensor, values in expected.items():
        own = found[tensor]
        assert str(own.dtype) == f"torch.{case['out_dtype']}"
        own = own.float()
        if tensor.startswith(("lm_head", "model.embed_tokens")):
            own = own[rows]
        difference = (own - values.float()).abs()
        if tensor in ambiguous:
            difference = difference[~ambiguous[tensor].bool()]
        tolerance = 0 if case["tolerance"]["kind"] == "exact" else case["tolerance"]["value"]
        assert difference.numel() == 0 or difference.max() <= tolerance * values.abs().max(), tensor


@pytest.mark.parametrize("name", MERGED)
def test_merged_recipes_load_in_transformers(name, tmp_path):
    case = CASES[name]
    main(["merge", str(recipe_of(case, tmp_path)), str(tmp_path / "merged")])
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert model.config.num_hidden_layers == case["num_hidden_layers"]
    assert model.get_input_embeddings().num_embeddings == case["vocab_size"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert len(tokenizer) == case.get("vocabulary_length", len(tokenizer))
    for token in case.get("token_ids", ()):
        (row,) = tokenizer(token, add_special_tokens=False)["input_ids"]
        assert row == tokenizer.get_vocab()[token]
        assert tokenizer.decode([row]).strip() == token
    if "chat_template" in case:
        assert tokenizer.chat_template == case["chat_template"]
    for rendered in case.get("chat_template_renders", ()):
        text = tokenizer.apply_chat_template(
            rendered["messages"], add_generation_prompt=rendered["add_generation_prompt"], tokenize=False
        )
        assert text.strip("\n") == rendered["text"].strip("\n")


@pytest.mark.parametrize("name", [name for name in REFUSED if name in CASES])
def test_bad_recipes_are_refused_with_line_and_key(name, tmp_path):
    file = recipe_of(CASES[name], tmp_path)
    with pytest.raises(UserError) as error:
        main(["merge", str(file), str(tmp_path / "merged")])
    line, key = REFUSED[name]
    assert str(error.value).startswith(f"{file}:{line}: {key}: ")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir() if path.name != "logs"] == [file.name]


def test_every_bad_recipe_is_expected_to_be_refused():
    assert {name for name, case in CASES.items() if "refused" in case} <= REFUSED.keys()
