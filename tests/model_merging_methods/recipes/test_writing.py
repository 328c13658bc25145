"""A recipe that the command line prints makes the same files as the command line."""

import json
import shutil

import pytest

from model_merging_methods.__main__ import main
from tests.model_merging_methods.checkpoints.test_lora_adapter import save_adapter
from tests.model_merging_methods.recipes.test_golden_recipes import GOLDEN, tensors_of
from tests.model_merging_methods.small_models import save_model
from utils.errors import UserError

MODELS = GOLDEN.parent / "methods" / "models" / "float32"


def options_of(*options):
    models = [f"{name}={MODELS / name}" for name in ("instruct", "math")]
    return ["merge", "--pretrained_model", f"{MODELS / 'base'}", "--models", *models, *options]


@pytest.mark.parametrize(
    "options",
    [
        "--merging_method_name average_merging",
        "--merging_method_name average_merging --mixup_lambda 0.3",
        "--merging_method_name ties_merging --mixup --alpha 0.7 --seed 4 --dtype bfloat16",
        "--merging_method_name ties_merging --ratio_by_layer 0.1 0.8 0.4",
        "--merging_method_name task_arithmetic --scaling_coefficient 0.7",
        "--merging_method_name task_arithmetic --weight math=0.25 --exclude_param_names_regex mlp",
        "--merging_method_name ties_per_tensor --density instruct=0.3 math=0.6",
        "--merging_method_name linear --weight instruct=1 math=3",
        "--merging_method_name slerp --t 0.3",
        "--merging_method_name nuslerp --weight math=0.2",
        "--merging_method_name magmax",
        "--use_weight_rescale --weight_mask_rate 0.4 --mask_apply_method ties_merging --seed 2",
        "--weight_mask_rate 0.4 --mask_apply_method average_merging --weight_format finetuned_weight",
        "--mask_strategy breadcrumbs --density 0.5 --mask_apply_method task_arithmetic",
        "--weight_mask_rate 0.3 --mask_apply_method linear --weight_format finetuned_weight --weight math=0.9 --seed 7",
        "--weight_mask_rate 0.4 --mask_apply_method karcher",
        "--merging_method_name slerp --t 0.3 --dot_threshold 0.5 --exclude_param_names_regex mlp norm",
        "--mask_strategy della --density 0.6 --mask_apply_method ram",
        "--merging_method_name average_merging --config_from math",
    ],
)
def test_a_printed_recipe_makes_the_same_files(options, tmp_path, capsys):
    assert_same_files(options_of(*options.split()), tmp_path, capsys)


def test_a_printed_recipe_merges_other_vocabularies_alike(tmp_path, capsys):
    base = save_model(tmp_path / "base", seed=0)
    more = save_model(tmp_path / "more", 1, base=base, added_tokens=("[PAD]",))
    other = save_model(tmp_path / "other", 2, base=base)
    models = ["--pretrained_model", f"{base}", "--models", f"a={other}", f"more={more}", "--allow_unrelated"]
    assert_same_files(["merge", "--merging_method_name", "average_merging", *models], tmp_path, capsys)


def assert_same_files(options, tmp_path, capsys):
    main([*options, "--print_recipe"])
    file = tmp_path / "recipe.yml"
    file.write_text(capsys.readouterr().out)
    main(["merge", str(file), str(tmp_path / "of_recipe")])
    main([*options, "--output_dir", str(tmp_path / "of_options")])
    first = options[options.index("--models") + 1].partition("=")[0]
    made = next(one.parent for one in tmp_path.glob("of_options/**/merge_record.json") if tokenizer_of(one) == first)
    for path in (path for path in made.iterdir() if path.name != "merge_record.json"):
        assert path.read_bytes() == (tmp_path / "of_recipe" / path.name).read_bytes(), path.name


def tokenizer_of(record):
    return json.loads(record.read_text())["tokenizer_from"]


RECIPE = f"""
name: drawn
merge_method: dare_ties
base_model: {MODELS}/base
models:
- {{model: {MODELS}/instruct, name: first, parameters: {{weight: [0.2, 0.8], density: 0.5}}}}
- {{model: {MODELS}/math, parameters: {{weight: 0.5, density: 0.7}}}}
---
merge_method: slerp
base_model: drawn
slices:
- sources:
  - {{model: drawn, layer_range: [0, 3]}}
  - {{model: {MODELS}/code, layer_range: [0, 3]}}
parameters: {{t: [{{filter: mlp, value: 0.2}}, {{value: 0.6}}]}}
tokenizer_source: union
"""


WITH_ADAPTER = """
merge_method: linear
base_model: {path: me@home/c++/base}
models:
- {model: {path: me@home/c++/base}, parameters: {weight: 1}}
- {model: {model: {path: me@home/c++/base}, lora: {path: me@home/c++/adapter}}, parameters: {weight: 1}}
"""


@pytest.mark.parametrize(
    "text", [RECIPE, RECIPE.split("---")[0], WITH_ADAPTER], ids=["two documents", "one", "@ and + in paths"]
)
def test_the_printed_recipe_of_a_record_makes_the_same_model(text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "me@home" / "c++"
    save_adapter(save_model(folder / "base", seed=0), folder / "adapter")
    (tmp_path / "recipe.yml").write_text(text)
    main(["merge", str(tmp_path / "recipe.yml"), str(tmp_path / "merged"), "--seed", "3"])
    capsys.readouterr()
    main(["merge", "--from_record", str(tmp_path / "merged" / "merge_record.json"), "--print_recipe"])
    (tmp_path / "printed.yml").write_text(capsys.readouterr().out)
    main(["merge", str(tmp_path / "printed.yml"), str(tmp_path / "again")])
    for name, values in tensors_of(tmp_path / "merged").items():
        assert values.equal(tensors_of(tmp_path / "again")[name]), name


def test_the_printed_recipe_of_a_record_takes_any_folder_name(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("_a", "-b", "数学"):
        shutil.copytree(MODELS / "math", tmp_path / name)
    models = ", ".join(f"{{model: ./{name}, parameters: {{weight: 1}}}}" for name in ("_a", "-b", "数学"))
    text = f"merge_method: task_arithmetic\nbase_model: {MODELS}/base\nmodels: [{models}]\n"
    (tmp_path / "recipe.yml").write_text(text)
    main(["merge", "recipe.yml", "merged"])
    capsys.readouterr()
    main(["merge", "--from_record", "merged/merge_record.json", "--print_recipe"])
    (tmp_path / "printed.yml").write_text(capsys.readouterr().out)
    main(["merge", "printed.yml", "again"])
    names = [
        [one["role"] for one in json.loads((tmp_path / folder / "merge_record.json").read_text())["inputs"]]
        for folder in ("merged", "again")
    ]
    assert names == [["pretrained", "_a", "-b", "_"]] * 2


@pytest.mark.parametrize("method", ["average_merging", "task_arithmetic", "ties_merging", "ties_per_tensor", "nuslerp"])
def test_ratios_by_layer_are_those_of_the_layer(method, tmp_path):
    """Three layers, and what is outside of them with the first one."""

    def merged(*options):
        main([*options_of("--merging_method_name", method, *options), "--output_dir", str(tmp_path)])
        newest = max(tmp_path.rglob("model.safetensors"), key=lambda file: file.stat().st_mtime_ns)
        return tensors_of(newest.parent)

    by_layer = merged("--ratio_by_layer", "0.25", "0.75")
    of_layer = [merged("--mixup_lambda", ratio) for ratio in ("0.25", "0.5", "0.75")]
    for name, values in by_layer.items():
        layer = int(name.split(".")[2]) if ".layers." in name else 0
        assert values.equal(of_layer[layer][name]), name


def test_senseless_ratios_by_layer_are_refused():
    method = ("--merging_method_name", "average_merging", "--ratio_by_layer")
    for points in (("0.5",), ("0.5", "1.5")):
        with pytest.raises(UserError, match=r"--ratio_by_layer .*: give two ratios or more between 0 and 1"):
            main(options_of(*method, *points))
    with pytest.raises(UserError, match="--ratio_by_layer: gives M3's ratios, and so do"):
        main(options_of(*method, "0.2", "0.8", "--mixup"))
    with pytest.raises(UserError, match="is for two models, not 3"):
        main([*options_of(*method, "0.2", "0.8"), "--models", *(f"{n}={MODELS / 'math'}" for n in "abc")])
