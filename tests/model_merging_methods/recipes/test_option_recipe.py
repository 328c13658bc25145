"""Recipes whose keys are the options of `merge`."""

import json
import re
from pathlib import Path

import pytest
import yaml

import merge_llms_instruct_math_code
from model_merging_methods.__main__ import main
from tests.model_merging_methods.recipes.test_writing import MODELS
from utils.errors import UserError

ROOT = Path(__file__).parents[3]
RECIPE = f"""merging_method_name: ties_merging
pretrained_model: {MODELS}/base
models: {{instruct: {MODELS}/instruct, math: {MODELS}/math}}
mixup: true
seed: 2
"""


def write(tmp_path, text):
    file = tmp_path / "recipe.yml"
    file.write_text(text)
    return str(file)


def record_of(folder):
    return json.loads((folder / "merge_record.json").read_text())


def test_a_seed_of_the_command_replaces_the_recipes(tmp_path):
    file = write(tmp_path, RECIPE)
    main(["merge", file, str(tmp_path / "two")])
    main(["merge", file, str(tmp_path / "three"), "--seed", "3"])
    main(["merge", write(tmp_path, RECIPE.replace("seed: 2", "seed: 3")), str(tmp_path / "three")])  # done already
    two, three = record_of(tmp_path / "two")["parameters"], record_of(tmp_path / "three")["parameters"]
    assert (two["seed"], three["seed"]) == (2, 3)
    assert two["mixup"]["weights"] != three["mixup"]["weights"]


def test_the_main_job_takes_a_recipe_as_its_options(tmp_path):
    options = ["--recipe", write(tmp_path, RECIPE), "--merge_only", "--output_dir", str(tmp_path / "out")]
    merge_llms_instruct_math_code.main(options)
    made = sorted(record_of(path.parent)["tokenizer_from"] for path in tmp_path.glob("out/**/merge_record.json"))
    assert made == ["instruct", "math"]


MASK = RECIPE.replace("ties_merging", "mask_merging") + "mask_apply_method: linear\n"


def test_the_main_job_prints_the_recipe_of_its_options(tmp_path, capsys):
    models = ["--pretrained_model", f"{MODELS}/base", "--merge_instruct", "--instruct_model", f"{MODELS}/instruct"]
    options = [*models, "--merge_math", "--math_model", f"{MODELS}/math", "--merging_method_name", "ties-merging"]
    merge_llms_instruct_math_code.main([*options, "--mixup", "--seed", "2", "--print_recipe"])
    assert yaml.safe_load(capsys.readouterr().out) == {**yaml.safe_load(RECIPE), "alpha": 0.5}


def test_overwrite_replaces_models_only(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="notes: holds files, but no model; choose another output folder"):
        main(["merge", write(tmp_path, RECIPE), str(tmp_path / "notes"), "--overwrite"])
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (MASK + "mask_strategy: della\ndensity: {math: 0.1}\nepsilon: 0.5\n", "recipe.yml:9: epsilon 0.5: density ±"),
        (MASK + "use_l1_rescale: true\nuse_weight_rescale: true\n", "recipe.yml:7: use_l1_rescale and .* are two ways"),
        (RECIPE + "alhpa: 0.5\n", r"recipe.yml:6: alhpa: unknown key; did you mean alpha\?"),
        (RECIPE + "top_k: 20\n", "recipe.yml:6: top_k: unknown key; ties_merging takes scaling_coefficient, param"),
        (RECIPE + "alpha: much\n", "recipe.yml:6: alpha: invalid float value: 'much'; correct it"),
        (RECIPE + "from_record: x\n", "recipe.yml:6: from_record: does not define a merge here; give"),
        (RECIPE.replace("pretrained", "base"), "recipe.yml:2: base_model: is mergekit's key; .* write pretrained"),
        (RECIPE.replace("mixup: true\n", "") + "alpha: 0.1\n", "recipe.yml:5: alpha 0.1 has no effect"),
        (RECIPE + "param_value_mask_rate: 7\n", "recipe.yml:6: param_value_mask_rate 7.0: give"),
        (RECIPE + "weight: {cook: 0.5}\n", "recipe.yml:6: weight.* has no effect"),
        (RECIPE.replace("ties_merging", "tise"), "recipe.yml:1: merging_method_name: invalid choice: 'tise'"),
        (RECIPE.replace(" ties_merging", ""), "recipe.yml:1: merging_method_name: is empty; give a text"),
        (RECIPE.replace("true", "1"), "recipe.yml:4: mixup: give true or false"),
        (RECIPE.replace("seed: 2", "seed: [2, 3]"), "recipe.yml:5: seed: has 2 values; give one"),
        (RECIPE + "scaling_coefficient: true\n", "recipe.yml:6: scaling_coefficient: is True; give a number or a text"),
        (RECIPE + "weight: {math: [1, 2]}\n", r"recipe.yml:6: weight: holds \[1, 2\]; give a number or a text"),
        (RECIPE.replace(f"{MODELS}/math", ""), "recipe.yml:3: models: holds None; give a number or a text"),
        (RECIPE.replace(f"{MODELS}/math", "/no/math"), "recipe.yml:3: math: /no/math: no such model folder"),
        (
            RECIPE.replace(f"{MODELS}/base", "/no/base"),
            "recipe.yml:2: pretrained_model: /no/base: no such model folder",
        ),
        (re.sub("pretrained.*\n", "", RECIPE), "recipe.yml:1: pretrained_model: is missing; add the model that"),
        (RECIPE + "---\n" + RECIPE, "recipe.yml:1: merging_method_name: a recipe of options is alone in its file"),
    ],
)
def test_a_bad_recipe_of_options_names_line_and_key(text, error, tmp_path):
    with pytest.raises(UserError, match=error) as raised:
        main(["merge", write(tmp_path, text), str(tmp_path / "merged")])
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "merged").exists()


def test_switches_may_be_off(tmp_path):
    off = "merge_code: false\nallow_unrelated: false\n"
    main(
        [
            "merge",
            write(tmp_path, RECIPE.replace("mixup: true\nseed: 2\n", "mixup: false\n") + off),
            str(tmp_path / "a"),
        ]
    )
    assert record_of(tmp_path / "a")["parameters"]["mixup"] is None


def test_a_value_may_begin_with_a_hyphen(tmp_path):
    patterns = ["-|norm", "--|mlp"]
    main(["merge", write(tmp_path, f"{RECIPE}exclude_param_names_regex: {patterns}\n"), str(tmp_path / "merged")])
    assert record_of(tmp_path / "merged")["parameters"]["exclude_param_names_regex"] == patterns


def test_the_documented_recipe_merges(tmp_path):
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "recipes.md").read_text(), re.DOTALL)
    text = next(block for block in blocks if "merging_method_name" in block)
    for name, model in {"base": "base", "chat": "instruct", "math": "math"}.items():
        text = text.replace(f"org/{name}", f"{MODELS}/{model}")
    main(["merge", write(tmp_path, text), str(tmp_path / "merged")])
    assert record_of(tmp_path / "merged")["parameters"]["mixup"]["alpha"] == 0.5


def test_a_recipe_may_have_any_file_name(tmp_path):
    file = tmp_path / "recipe.txt"
    file.write_text(RECIPE)
    main(["merge", str(file), str(tmp_path / "merged")])
    assert record_of(tmp_path / "merged")["parameters"]["method"] == "ties_merging"
