"""Recipes as users run them: options, records, interrupted runs, adapters, several documents, stacked layers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from merge_llms_instruct_math_code import main as main_job
from model_merging_methods.__main__ import main
from tests.model_merging_methods.checkpoints.test_lora_adapter import save_adapter
from tests.model_merging_methods.recipes.test_golden_recipes import GOLDEN, tensors_of
from tests.model_merging_methods.small_models import save_model, save_models
from utils.errors import UserError

ROOT = Path(__file__).parents[3]
MODELS = GOLDEN.parent / "methods" / "models" / "float32"
TIES = f"""
merge_method: ties
base_model: {MODELS}/base
models:
- model: {MODELS}/instruct
  parameters: {{weight: [0.2, 0.8], density: 0.5}}
- model: {MODELS}/math
  parameters: {{weight: 0.5, density: 0.7}}
"""
DARE = TIES.replace("ties", "dare_ties")
TO_BASE = "tokenizer_source: base"
TWO_DOCUMENTS = f"""
name: first
{TIES}
---
merge_method: linear
models:
- model: first
  parameters: {{weight: 1}}
- model: {MODELS}/code
  parameters: {{weight: 1}}
"""


@pytest.fixture
def recipe(tmp_path):
    def write(text: str) -> str:
        (tmp_path / "recipe.yml").write_text(text)
        return str(tmp_path / "recipe.yml")

    return write


def files_of(folder: Path) -> dict[str, bytes]:
    """All files but the record, which has times."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "merge_record.json"}


def test_a_finished_recipe_is_recognised_and_another_one_refused(recipe, tmp_path, caplog):
    merged = str(tmp_path / "merged")
    main(["merge", recipe(TIES), merged])
    before = files_of(tmp_path / "merged")
    main(["merge", recipe(TIES), merged])
    assert "already merged" in caplog.text
    other = recipe(TIES.replace("0.7", "0.6"))
    with pytest.raises(UserError, match=r"holds the results of another run.*--overwrite"):
        main(["merge", other, merged])
    assert files_of(tmp_path / "merged") == before
    main(["merge", other, merged, "--overwrite"])
    assert files_of(tmp_path / "merged") != before


def test_the_record_of_a_recipe_repeats_the_merge(recipe, tmp_path):
    main(["merge", recipe(DARE), str(tmp_path / "merged"), "--seed", "5"])
    record = tmp_path / "merged" / "merge_record.json"
    assert "seed: 5\n```" in (tmp_path / "merged" / "README.md").read_text()
    main(["merge", "--from_record", str(record), "--output_dir", str(tmp_path / "again")])
    again = next((tmp_path / "again").rglob("merge_record.json"))
    for name, values in tensors_of(tmp_path / "merged").items():
        assert values.equal(tensors_of(again.parent)[name])
    fingerprints = [json.loads(file.read_text())["fingerprint"] for file in (record, again)]
    assert fingerprints[0] == fingerprints[1]


TOKEN = f"""
merge_method: linear
models:
- {{model: {MODELS}/instruct, parameters: {{weight: 1}}}}
- {{model: {MODELS}/code, parameters: {{weight: 1}}}}
tokenizer:
  tokens:
    "<s>": {{source: {{kind: model_token, model: {MODELS}/code, token: "</s>"}}, force: true}}
"""
NAMED_BASE = f"""
merge_method: linear
base_model: {MODELS}/math
models:
- {{model: {MODELS}/math, parameters: {{weight: 1}}}}
- {{model: {MODELS}/base, parameters: {{weight: 1}}}}
tokenizer_source: {MODELS}/base
"""


@pytest.mark.parametrize(
    ("text", "old", "new"), [(TOKEN, "</s>", "<unk>"), (NAMED_BASE, f"tokenizer_source: {MODELS}/base", TO_BASE)]
)
def test_the_record_keeps_every_part_of_a_tokenizer(text, old, new, recipe, tmp_path):
    main(["merge", recipe(text), str(tmp_path / "merged")])
    record = tmp_path / "merged" / "merge_record.json"
    main(["merge", "--from_record", str(record), "--output_dir", str(tmp_path / "again")])
    again = next((tmp_path / "again").rglob("merge_record.json")).parent
    assert files_of(again) == files_of(tmp_path / "merged")
    with pytest.raises(UserError, match="holds the results of another run"):
        main(["merge", recipe(text.replace(old, new)), str(tmp_path / "merged")])


def test_the_name_of_any_model_decides_its_random_mask(recipe, tmp_path):
    text = f"""
merge_method: linear
models:
- {{model: {MODELS}/instruct, name: NAME, parameters: {{weight: 1}}}}
- {{model: {MODELS}/code, name: two, parameters: {{weight: 1}}}}
mask: {{name: dare, weight_format: finetuned_weight}}
parameters: {{weight_mask_rate: 0.5}}
"""
    for name in ("one", "uno"):
        main(["merge", recipe(text.replace("NAME", name)), str(tmp_path / name)])
    one, uno = (tensors_of(tmp_path / name)["lm_head.weight"] for name in ("one", "uno"))
    assert not one.equal(uno)
    with pytest.raises(UserError, match=r"recipe.yml:\d+: name: two is the name of two models"):
        main(["merge", recipe(text.replace("NAME", "two")), str(tmp_path / "other")])


def test_the_seed_of_mergekit_s_option_draws_other_masks(recipe, tmp_path):
    for seed in ("0", "1"):
        main(["merge", recipe(DARE), str(tmp_path / seed), "--random-seed", seed])
    zero, one = tensors_of(tmp_path / "0"), tensors_of(tmp_path / "1")
    assert not zero["lm_head.weight"].equal(one["lm_head.weight"])


def test_options_of_mergekit_without_effect_are_named_once(recipe, tmp_path, caplog):
    options = ["--copy-tokenizer", "--lazy-unpickle", "--out-shard-size", "1000", "--no-cuda", "--allow-crimes"]
    options += ["-j", "2", "--device", "cpu", "--no-trust-remote-code"]
    main(["merge", recipe(TIES), str(tmp_path / "merged"), *options])
    assert "without effect here: --copy-tokenizer, --lazy-unpickle, --allow-crimes, --num-threads" in caplog.text
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 10
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with pytest.raises(UserError, match="--trust-remote-code: code of models is never run"):
        main(["merge", recipe(TIES), str(tmp_path / "other"), "--trust-remote-code"])


def test_check_reads_headers_and_writes_nothing(recipe, tmp_path, capsys):
    with pytest.raises(SystemExit) as status:
        main(["merge", recipe(TIES), str(tmp_path / "merged"), "--check"])
    assert status.value.code == 0
    assert "no errors" in capsys.readouterr().out
    with pytest.raises(SystemExit) as status:
        main(["merge", recipe(STACK.replace("[1, 3]", "[1, 4]")), str(tmp_path / "merged"), "--check"])
    assert status.value.code == 2
    assert "goes beyond the 3 layers" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yml"]


def document(method: str, models: list[str], base: str | None = None, **keys: object) -> str:
    """A recipe in YAML, which JSON is too."""
    places = [model if model == "FIRST" else f"{MODELS}/{model}" for model in (*models, *([base] if base else []))]
    fields = {"merge_method": method, "models": [{"model": place} for place in places[: len(models)]], **keys}
    return json.dumps(fields | ({"base_model": places[-1]} if base else {})) + "\n"


BOTH = ["instruct", "math"]
EARLIER = {
    "ties": document("ties", BOTH, "base", parameters={"weight": 0.5, "density": [0.4, 0.8]}),
    "dare_ties": document("dare_ties", BOTH, "base", parameters={"weight": 0.5, "density": 0.5}, seed=3),
    "the paper's TIES": document("ties_merging", BOTH, "base", dtype="bfloat16"),
    "slerp": document("slerp", ["math"], "instruct", parameters={"t": 0.3}),
    "whole tensors": document("iso_c", BOTH, "base"),
    "another vocabulary": document("linear", BOTH, parameters={"weight": 1}, tokenizer_source="union"),
}
LATER = {
    "linear": document("linear", ["FIRST", "code"], parameters={"weight": 1}, tokenizer_source="union"),
    "model_stock": document("model_stock", ["FIRST", "code"], "base", tokenizer_source="base"),
    "ties on it": document(
        "ties", ["code"], "FIRST", parameters={"weight": 1, "density": 0.5}, tokenizer_source="union"
    ),
}


@pytest.mark.parametrize("earlier", EARLIER)
@pytest.mark.parametrize("later", LATER)
def test_documents_in_one_file_make_what_they_make_one_after_the_other(earlier, later, recipe, tmp_path):
    first = tmp_path / "first"
    main(["merge", recipe(EARLIER[earlier]), str(first)])
    main(["merge", recipe(LATER[later].replace("FIRST", str(first))), str(tmp_path / "second")])
    named = json.dumps({"name": "one", **json.loads(EARLIER[earlier])})
    main(["merge", recipe(f"{named}\n---\n{LATER[later].replace('FIRST', 'one')}"), str(tmp_path / "merged")])
    assert {path.name for path in tmp_path.iterdir()} == {"first", "second", "merged", "recipe.yml", "logs"}
    files, wanted = files_of(tmp_path / "merged"), files_of(tmp_path / "second")
    assert {**files, "README.md": b""} == {**wanted, "README.md": b""}


def test_a_finished_file_of_several_documents_is_recognised(recipe, tmp_path, caplog):
    save_models(tmp_path, ("base", "instruct", "math", "code"))
    text = TWO_DOCUMENTS.replace(str(MODELS), str(tmp_path))
    main(["merge", recipe(text), str(tmp_path / "merged")])
    before = files_of(tmp_path / "merged")
    caplog.clear()
    main(["merge", recipe(text), str(tmp_path / "merged")])
    assert "already merged" in caplog.text and "merging" not in caplog.text.replace("merging_methods", "")
    with pytest.raises(UserError, match="holds the results of another run"):
        main(["merge", recipe(text.replace("density: 0.7", "density: 0.6")), str(tmp_path / "merged")])
    shutil.rmtree(tmp_path / "math")
    save_model(tmp_path / "math", seed=77)
    with pytest.raises(UserError, match="holds the results of another run"):
        main(["merge", recipe(text), str(tmp_path / "merged")])
    assert files_of(tmp_path / "merged") == before


def test_the_record_of_several_documents_repeats_them(recipe, tmp_path):
    save_models(tmp_path, ("base", "instruct", "math", "code"))
    main(["merge", recipe(TWO_DOCUMENTS.replace(str(MODELS), str(tmp_path))), str(tmp_path / "merged"), "--overwrite"])
    record = tmp_path / "merged" / "merge_record.json"
    (tmp_path / "math").rename(tmp_path / "moved")
    command = ["merge", "--from_record", str(record), "--output_dir", str(tmp_path / "again")]
    with pytest.raises(UserError, match="math: no such model folder"):
        main(command)
    with pytest.raises(UserError, match=r"this merge has no one\.math model"):
        main([*command, "--models", f"one.math={tmp_path / 'moved'}"])
    main([*command, "--models", f"pretrained.math={tmp_path / 'moved'}"])
    again = next((tmp_path / "again").rglob("merge_record.json"))
    assert {**files_of(again.parent), "README.md": b""} == {**files_of(tmp_path / "merged"), "README.md": b""}
    shutil.rmtree(tmp_path / "moved")
    save_model(tmp_path / "moved", seed=77)
    with pytest.raises(UserError, match=r"math model's model\.safetensors is not the file"):
        main([*command, "--models", f"pretrained.math={tmp_path / 'moved'}", "--overwrite"])


def test_an_adapter_is_applied_to_its_own_model(tmp_path, recipe):
    base, adapter = save_model(tmp_path / "base", seed=0), tmp_path / "adapter"
    save_adapter(tmp_path / "base", adapter)
    save_model(tmp_path / "other", seed=1)
    text = f"merge_method: linear\nmodels:\n- {{model: {tmp_path}/base+{adapter}, parameters: {{weight: 1}}}}\n"
    text += f"- {{model: {tmp_path}/other, parameters: {{weight: 1}}}}\ndtype: float32\n"
    main(["merge", recipe(text), str(tmp_path / "merged")])
    del base
    whole = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), adapter)
    expected = whole.merge_and_unload().state_dict()
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "other").state_dict()
    for name, values in tensors_of(tmp_path / "merged").items():
        assert torch.allclose(values, (expected[name].float() + other[name].float()) / 2, atol=1e-6), name


STACK = f"""
merge_method: passthrough
slices:
- sources: [{{model: {MODELS}/instruct, layer_range: [0, 3]}}]
- sources: [{{model: {MODELS}/math, layer_range: [1, 3]}}]
- sources: [{{model: {MODELS}/instruct, layer_range: [2, 3]}}]
"""


def test_stacked_layers_compute_what_the_layers_compute_one_after_the_other(recipe, tmp_path):
    main(["merge", recipe(STACK), str(tmp_path / "merged")])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    instruct, math = (
        AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=torch.float32) for name in ("instruct", "math")
    )
    assert merged.config.num_hidden_layers == 6
    layers = [*instruct.model.layers, *math.model.layers[1:], instruct.model.layers[2]]
    instruct.model.layers = torch.nn.ModuleList(layers)
    instruct.config.num_hidden_layers = 6
    tokens = torch.tensor([[1, 5, 9, 14, 3]])
    with torch.no_grad():
        wanted = instruct(tokens, use_cache=False).logits
        assert torch.allclose(merged(tokens, use_cache=False).logits, wanted, atol=1e-5)


def test_a_killed_recipe_goes_on(recipe, tmp_path):
    save_models(tmp_path, ("base", "instruct", "math"), hidden_size=256)
    text = TWO_DOCUMENTS.replace(f"{MODELS}/code", f"{tmp_path}/math").replace(str(MODELS), str(tmp_path))
    command = [
        "-m",
        "model_merging_methods",
        "merge",
        recipe(text),
        str(tmp_path / "merged"),
        "--out-shard-size",
        "10K",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    main([*command[2:4], str(tmp_path / "whole"), *command[5:]])
    running = subprocess.Popen([sys.executable, *command], env=environment, cwd=tmp_path)
    while running.poll() is None and not list(tmp_path.rglob(".*/**/merge_progress.json")):
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    main(command[2:])
    assert files_of(tmp_path / "merged") == files_of(tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))


def test_a_changed_recipe_replaces_what_a_killed_run_left(recipe, tmp_path):
    main(["merge", recipe(TIES), str(tmp_path / ".merged.documents" / "first")])
    later = TWO_DOCUMENTS.replace("method: linear", f"method: ties\nbase_model: {MODELS}/base")  # reads it many times
    main(["merge", recipe(later.replace("0.7", "0.3")), str(tmp_path / "merged")])
    assert not (tmp_path / ".merged.documents").exists()


def test_an_empty_folder_is_merged_into(recipe, tmp_path):
    (tmp_path / "merged").mkdir()
    main(["merge", recipe(TIES), str(tmp_path / "merged")])
    assert (tmp_path / "merged" / "merge_record.json").is_file()
    assert not list(tmp_path.glob(".merged*"))


@pytest.mark.parametrize("folder", ["models", "work"])
def test_overwriting_spares_the_models_and_the_working_folder(folder, recipe, tmp_path, monkeypatch):
    shutil.copytree(MODELS / "math", tmp_path / "models" / "math")
    (tmp_path / "work" / "notes").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work" / "notes")
    text = f"merge_method: linear\nmodels: [{{model: {tmp_path}/models/math, parameters: {{weight: 1}}}}]\n"
    with pytest.raises(UserError, match=r"contains .*; choose another output folder"):
        main(["merge", recipe(text), f"../../{folder}", "--overwrite"])
    assert (tmp_path / "models" / "math").is_dir() and (tmp_path / "work" / "notes").is_dir()


def test_the_main_job_merges_a_recipe_and_takes_no_other_merge(recipe, tmp_path):
    output = ["--output_dir", str(tmp_path / "out")]
    main_job(["--recipe", recipe(TIES), "--merge_only", *output])
    merged = next((tmp_path / "out" / "save_merge_models").rglob("config.json")).parent
    assert merged.name.startswith("recipe_")
    with pytest.raises(UserError, match="--merge_math has no effect with --recipe"):
        main_job(["--recipe", recipe(TIES), "--merge_math", *output])
    with pytest.raises(UserError, match="--tasks: give the tasks to run"):
        main_job(["--recipe", recipe(TIES), *output])


def merged(recipe, folder: Path, text: str) -> dict[str, torch.Tensor]:
    main(["merge", recipe(text), str(folder)])
    return tensors_of(folder)


def linear(*models: object) -> str:
    entries = "".join(f"- {{model: {model}, parameters: {{weight: 1}}}}\n" for model in models)
    return f"merge_method: linear\nmodels:\n{entries}dtype: float32\n"


def test_models_of_any_folder_names_keep_their_roles(recipe, tmp_path):
    for name, source in (("X.2", "math"), ("X", "code"), ("other/X", "instruct")):
        shutil.copytree(MODELS / source, tmp_path / name)
    found = merged(
        recipe, tmp_path / "merged", linear(MODELS / "base", *(tmp_path / n for n in ("X.2", "X", "other/X")))
    )
    models = [tensors_of(MODELS / name) for name in ("base", "math", "code", "instruct")]
    for name, values in found.items():
        assert torch.allclose(values, sum(own[name] for own in models) / 4, atol=1e-6), name


def test_a_switch_with_a_filter_counts_where_it_says(recipe, tmp_path):
    text = DARE + "parameters: {rescale: %s}\ndtype: float32\n"
    on, off = (merged(recipe, tmp_path / word, text % word) for word in ("true", "false"))
    mixed = merged(recipe, tmp_path / "mixed", text % "[{filter: mlp, value: true}, {value: false}]")
    for name, values in mixed.items():
        assert values.equal((on if "mlp" in name else off)[name]), name


def test_a_base_of_one_slice_counts_for_that_slice_alone(recipe, tmp_path):
    source = "[{model: %s/instruct, layer_range: %s}, {model: %s/math, layer_range: %s}%s]"
    with_base = f", {{model: {MODELS}/base, layer_range: [0, 2]}}"
    head = "merge_method: nuslerp\nparameters: {weight: 0.5}\ndtype: float32\nslices:\n"
    first = source % (MODELS, "[0, 2]", MODELS, "[0, 2]", with_base)
    second = source % (MODELS, "[2, 3]", MODELS, "[2, 3]", "")
    text = f"{head}- {{base_model: {MODELS}/base, sources: {first}}}\n- sources: {second}\n"
    found = merged(recipe, tmp_path / "sliced", text)
    whole = "merge_method: nuslerp\n%smodels:\n" + "".join(
        f"- {{model: {MODELS}/{name}, parameters: {{weight: 0.5}}}}\n" for name in ("instruct", "math")
    )
    based = merged(recipe, tmp_path / "based", whole % f"base_model: {MODELS}/base\n")
    plain = merged(recipe, tmp_path / "plain", whole % "")
    for name, values in found.items():
        is_second = ".layers.2." in name or name in ("lm_head.weight", "model.norm.weight")
        assert torch.allclose(values, (plain if is_second else based)[name], atol=1e-6), name


def test_statistics_of_whole_models_need_one_value(recipe, tmp_path):
    source = f"[{{model: {MODELS}/instruct, layer_range: %s}}, {{model: {MODELS}/math, layer_range: %s}}, "
    source += f"{{model: {MODELS}/base, layer_range: %s}}]"
    slices = [
        f"- sources: {source % (layers, layers, layers)}\n  parameters: {{param_value_mask_rate: {rate}}}\n"
        for layers, rate in (("[0, 2]", 0.2), ("[2, 3]", 0.8))
    ]
    text = f"merge_method: ties_merging\nbase_model: {MODELS}/base\nslices:\n{''.join(slices)}"
    with pytest.raises(UserError, match="param_value_mask_rate: ties_merging looks at whole models"):
        main(["merge", recipe(text), str(tmp_path / "merged")])


def test_a_tied_model_on_top_lends_its_embeddings_as_the_head(recipe, tmp_path):
    save_model(tmp_path / "untied", seed=0)
    save_model(tmp_path / "tied", seed=1, tied=True)
    text = "merge_method: passthrough\nslices:\n" + "".join(
        f"- sources: [{{model: {tmp_path}/{name}, layer_range: [0, 1]}}]\n" for name in ("untied", "tied")
    )
    found = merged(recipe, tmp_path / "merged", text)
    assert found["lm_head.weight"].equal(tensors_of(tmp_path / "tied")["model.embed_tokens.weight"])
    _, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]


def test_a_filter_sees_the_head_of_a_tied_model_by_its_name(recipe, tmp_path):
    save_model(tmp_path / "untied", seed=0)
    save_model(tmp_path / "tied", seed=1, tied=True)
    entries = "".join(f"- {{model: {tmp_path}/{name}}}\n" for name in ("untied", "tied"))
    text = f"merge_method: linear\nmodels:\n{entries}dtype: float32\nparameters:\n  weight:\n"
    text += "  - {filter: lm_head, value: 0.25}\n  - {value: 1}\n"
    found = merged(recipe, tmp_path / "merged", text)
    heads = (
        tensors_of(tmp_path / "untied")["lm_head.weight"],
        tensors_of(tmp_path / "tied")["model.embed_tokens.weight"],
    )
    assert torch.allclose(found["lm_head.weight"], sum(heads) / 2, atol=1e-6)


@pytest.mark.parametrize("row", [-1, 61])
def test_a_row_that_a_model_lacks_is_refused(recipe, tmp_path, row):
    text = linear(MODELS / "instruct", MODELS / "math") + "tokenizer:\n  tokens:\n    new: {source: "
    text += f"{{kind: model_token, model: {MODELS}/math, token_id: {row}}}}}\n"
    with pytest.raises(UserError, match=f"token_id: .* has no row {row}; give a number from 0 to 60"):
        main(["merge", recipe(text), str(tmp_path / "merged")])


def test_models_of_other_sizes_and_settings_are_refused(recipe, tmp_path):
    save_model(tmp_path / "small", seed=0)
    save_model(tmp_path / "wide", seed=0, hidden_size=32)
    text = "merge_method: passthrough\nslices:\n" + "".join(
        f"- sources: [{{model: {tmp_path}/{name}, layer_range: [0, 1]}}]\n" for name in ("small", "wide")
    )
    with pytest.raises(UserError, match="differ in tensors or shapes; stack models of one size"):
        main(["merge", recipe(text), str(tmp_path / "merged")])
    shutil.copytree(MODELS / "math", tmp_path / "heads")
    config = json.loads((tmp_path / "heads" / "config.json").read_text())
    config["num_attention_heads"] *= 2
    (tmp_path / "heads" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"num_attention_heads .*changes the meaning of the weights"):
        main(["merge", recipe(linear(MODELS / "base", tmp_path / "heads")), str(tmp_path / "merged")])
    assert not (tmp_path / "merged").exists()


def test_an_adapter_has_the_tokenizer_of_its_model(recipe, tmp_path):
    save_model(tmp_path / "base", seed=0)
    save_adapter(tmp_path / "base", tmp_path / "adapter")
    (tmp_path / "adapter" / "tokenizer.json").unlink(missing_ok=True)
    main(["merge", recipe(linear(f"{tmp_path}/base+{tmp_path}/adapter")), str(tmp_path / "merged")])
    wanted = AutoTokenizer.from_pretrained(tmp_path / "base").get_vocab()
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").get_vocab() == wanted


def test_missing_models_of_any_document_are_named_before_the_first_merge(recipe, tmp_path):
    text = TWO_DOCUMENTS.replace(f"{MODELS}/code", f"{tmp_path}/missing")
    with pytest.raises(UserError, match=r"recipe.yml:\d+: model: .*missing: no such model folder"):
        main(["merge", recipe(text), str(tmp_path / "merged")])
    assert {path.name for path in tmp_path.iterdir()} <= {"recipe.yml", "logs"}


def test_a_revision_of_a_folder_is_named_as_without_effect(recipe, tmp_path, caplog):
    main(["merge", recipe(TIES.replace("/math", "/math@v1")), str(tmp_path / "merged")])
    assert f"recipe.yml:4: {MODELS}/math@v1: {MODELS}/math is a folder here, so its revision has no" in caplog.text


def test_a_recipe_is_read_from_a_pipe(recipe, tmp_path):
    command = [sys.executable, "-m", "model_merging_methods", "merge", "/dev/stdin", str(tmp_path / "merged")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, input=TIES.encode(), env=environment, cwd=tmp_path, check=True)
    assert (tmp_path / "merged" / "merge_record.json").is_file()


def test_a_document_of_dots_is_refused(recipe, tmp_path):
    with pytest.raises(UserError, match=r"recipe.yml:2: name: '\.\.' cannot name a document; give another name"):
        main(["merge", recipe(TWO_DOCUMENTS.replace("first", "'..'")), str(tmp_path / "merged")])


def test_a_filter_that_fits_no_tensor_is_named(recipe, tmp_path, caplog):
    text = TIES.replace("weight: 0.5", "weight: [{filter: mpl, value: 1}, {value: 0.5}]")
    main(["merge", recipe(text), str(tmp_path / "merged")])
    assert "recipe.yml:8: weight: the filter mpl fits no tensor" in caplog.text


def test_a_parameter_and_a_pattern_without_effect_are_named(recipe, tmp_path, caplog):
    text = TIES.replace("ties", "task_arithmetic").replace("0.7", "0.7, weight: 1").replace("weight: 0.5, ", "")
    main(["merge", recipe(text + "exclude_param_names_regex: [nrom, norm]"), str(tmp_path / "merged")])
    assert "recipe.yml:8: density: has no effect on task_arithmetic" in caplog.text
    assert "recipe.yml:9: exclude_param_names_regex: nrom matches no tensor" in caplog.text
    assert "norm matches" not in caplog.text


def test_patterns_that_leave_nothing_to_merge_are_refused(recipe, tmp_path):
    with pytest.raises(UserError, match=r"recipe.yml:9: exclude_param_names_regex: matches every tensor"):
        main(["merge", recipe(TIES + 'exclude_param_names_regex: ["."]'), str(tmp_path / "merged")])


def test_patterns_may_leave_out_a_whole_slice(recipe, tmp_path):
    def slice_of(layer, *models):
        sources = "".join(f"  - {{model: {MODELS}/{model}, layer_range: [{layer}, {layer + 1}]}}\n" for model in models)
        return f"- sources:\n{sources}"

    text = f"merge_method: task_arithmetic\nbase_model: {MODELS}/base\nparameters: {{weight: 1}}\nslices:\n"
    text += slice_of(0, "base", "math") + slice_of(1, "base", "math", "code")
    text += 'exclude_param_names_regex: ["layers.1|lm_head|model.norm"]\n'
    main(["merge", recipe(text), str(tmp_path / "merged")])
    base, merged = tensors_of(MODELS / "base"), tensors_of(tmp_path / "merged")
    name = "model.layers.{}.mlp.up_proj.weight"
    assert merged[name.format(1)].equal(base[name.format(1)]) and not merged[name.format(0)].equal(base[name.format(0)])


def test_a_chat_template_that_no_model_has_is_reported(recipe, tmp_path, caplog):
    main(["merge", recipe(TIES + "chat_template: auto"), str(tmp_path / "merged")])
    assert caplog.text.count("recipe.yml:9: chat_template: no model has a chat template, so the merged model has") == 1


def test_a_chat_template_that_is_not_jinja_is_refused(recipe, tmp_path):
    with pytest.raises(UserError, match=r"chat_template: is not Jinja \(.*\); correct it"):
        main(["merge", recipe(TIES + 'chat_template: "{{ bad"'), str(tmp_path / "merged")])


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ("parameters: {weight: 0}", r"recipe.yml:6: linear: the weights sum to 0; change weight"),
        ("mixup: {ratio_by_layer: [0.5]}", r"recipe.yml:6: ratio_by_layer: give two ratios or more between 0 and 1"),
        (f"base_model: {MODELS}/base\nparameters: {{alpha: -1}}", r"recipe.yml:7: alpha: is -1; give a number of at"),
    ],
)
def test_numbers_that_make_no_sense_name_file_and_line(more, error, recipe, tmp_path):
    models = f"models:\n- model: {MODELS}/base\n- model: {MODELS}/math\n"
    method = "ramplus_tl" if "alpha" in more else "linear"
    with pytest.raises(UserError, match=error):
        main(["merge", recipe(f"merge_method: {method}\n{models}dtype: float32\n{more}\n"), str(tmp_path / "m")])
