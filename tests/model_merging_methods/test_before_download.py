"""Models of the hub are checked by their headers before their weights are downloaded; records pin their commits."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load, save

from tests.local_hub import COMMIT, ROOT, local_hub, run_with_hub

ZOO = ROOT / "scripts" / "tiny_zoo"
WEIGHTS = "model.safetensors"
MERGE = ["-m", "model_merging_methods", "merge", "--merging_method_name", "average_merging"]


def files_of(name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (ZOO / name).iterdir()}


@pytest.fixture
def models():
    return {f"our/{name}": files_of(name) for name in ("base", "instruct", "math")}


def words_of(merge: str, tmp_path: Path) -> list[object]:
    if merge == "options":
        named = ["--models", "instruct=our/instruct", "math=our/math", "--pretrained_model", "our/base"]
        return [*MERGE, *named, "--output_dir", tmp_path / "out"]
    if merge == "diagnose":
        models = ["--pretrained_model", "our/base", "--models", "our/instruct", "our/math"]
        return ["-m", "model_merging_methods", merge, *models, "--output_dir", tmp_path / "out"]
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        "merge_method: task_arithmetic\nbase_model: our/base\nparameters: {weight: 0.5}\ntokenizer_source: union\n"
        "models:\n  - model: our/instruct\n  - model: our/math@main\n"
    )
    return ["-m", "model_merging_methods", "merge", recipe, tmp_path / "out"]


@pytest.mark.parametrize("merge", ["options", "recipe", "diagnose"])
def test_a_mismatch_is_reported_before_weights_are_downloaded(models, merge, tmp_path):
    tensors = load(models["our/math"][WEIGHTS])
    name = "model.layers.0.mlp.up_proj.weight"
    models["our/math"][WEIGHTS] = save({**tensors, name: tensors[name][:-8].contiguous()}, {"format": "pt"})
    with local_hub(models) as (address, sent):
        done = run_with_hub(words_of(merge, tmp_path), address, tmp_path / "cache")
    assert done.returncode == 2 and name in done.stderr and "our/math@" in done.stderr, done.stderr
    assert "before the download of weights" in done.stderr and done.stderr.count("\n") == 1
    assert sent[WEIGHTS] <= 3 * 100_000 < len(models["our/base"][WEIGHTS])
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize("merge", ["options", "recipe"])
def test_a_check_reports_a_mismatch_before_weights_are_downloaded(models, merge, tmp_path):
    tensors = load(models["our/math"][WEIGHTS])
    name = "model.layers.0.mlp.up_proj.weight"
    models["our/math"][WEIGHTS] = save({**tensors, name: tensors[name][:-8].contiguous()}, {"format": "pt"})
    with local_hub(models) as (address, sent):
        done = run_with_hub([*words_of(merge, tmp_path), "--check"], address, tmp_path / "cache")
    assert done.returncode == 2 and f"error: our/math@{COMMIT}: tensor {name} is 376 x 128" in done.stdout, done.stderr
    assert sent[WEIGHTS] <= 3 * 100_000 < len(models["our/base"][WEIGHTS])


@pytest.mark.parametrize("merge", ["options", "recipe"])
def test_models_that_fit_are_merged_and_their_commits_recorded(models, merge, tmp_path):
    with local_hub(models) as (address, _):
        done = run_with_hub(words_of(merge, tmp_path), address, tmp_path / "cache")
    assert done.returncode == 0 and "HTTP Request" not in done.stdout, done.stdout + done.stderr
    record = json.loads(next((tmp_path / "out").rglob("merge_record.json")).read_text())
    assert {entry["hub"]["id"] for entry in record["inputs"]} == models.keys()
    assert {entry["hub"]["commit"] for entry in record["inputs"]} == {COMMIT}
    card = next((tmp_path / "out").rglob("README.md")).read_text()
    assert f"`our/math` at commit `{COMMIT}`" in card


@pytest.mark.parametrize("merge", ["options", "recipe"])
def test_a_printed_recipe_names_hub_models_with_their_commits(models, merge, tmp_path):
    with local_hub(models) as (address, _):
        run_with_hub(words_of(merge, tmp_path), address, tmp_path / "cache")
        record = next((tmp_path / "out").rglob("merge_record.json"))
        words = ["-m", "model_merging_methods", "merge", "--from_record", record, "--print_recipe"]
        printed = run_with_hub(words, address, tmp_path / "cache").stdout
        recipe = tmp_path / "printed.yml"
        recipe.write_text(printed)
        words = ["-m", "model_merging_methods", "merge", recipe, tmp_path / "again"]
        done = run_with_hub(words, address, tmp_path / "empty_cache")
    assert done.returncode == 0, done.stderr
    assert all(f"our/{name}@{COMMIT}" in printed for name in ("base", "instruct", "math")), printed
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (record.parent / WEIGHTS).read_bytes()


@pytest.mark.parametrize("merge", ["options", "recipe"])
def test_a_check_of_models_that_fit_downloads_no_weights(models, merge, tmp_path):
    with local_hub(models) as (address, sent):
        done = run_with_hub([*words_of(merge, tmp_path), "--check"], address, tmp_path / "cache")
    assert done.returncode == 0, done.stdout + done.stderr
    first, last = done.stdout.splitlines()
    assert first == "no errors and no warnings"
    assert last.startswith("not downloaded, so the values of their weights are not checked: our/base@")
    assert sent[WEIGHTS] <= 3 * 100_000 < len(models["our/base"][WEIGHTS])


def test_a_check_compares_no_values_of_a_model_here_with_one_on_the_hub(models, tmp_path):
    for files in models.values():
        files[WEIGHTS] = save({**load(files[WEIGHTS]), "steps": torch.tensor([3])}, {"format": "pt"})
    (tmp_path / "here").mkdir()
    for name, content in models["our/math"].items():
        (tmp_path / "here" / name).write_bytes(content)
    words = [str(word).replace("our/math", f"{tmp_path}/here") for word in words_of("options", tmp_path)]
    with local_hub(models) as (address, _):
        done = run_with_hub([*words, "--check"], address, tmp_path / "cache")
    first, last = done.stdout.splitlines()
    assert first == "no errors and no warnings", done.stdout
    assert last.endswith(f": our/base@{COMMIT}, our/instruct@{COMMIT}")


def test_a_recipe_is_printed_without_a_download_of_weights(models, tmp_path):
    with local_hub(models) as (address, sent):
        done = run_with_hub([*words_of("options", tmp_path), "--print_recipe"], address, tmp_path / "cache")
    assert yaml.safe_load(done.stdout)["models"]["math"] == f"our/math@{COMMIT}", done.stderr
    assert sent[WEIGHTS] <= 3 * 100_000 < len(models["our/base"][WEIGHTS])


@pytest.mark.parametrize("merge", ["options", "recipe"])
def test_models_of_a_server_without_range_requests_are_merged(models, merge, tmp_path):
    with local_hub(models, in_parts=False) as (address, _):
        done = run_with_hub(words_of(merge, tmp_path), address, tmp_path / "cache")
    assert done.returncode == 0, done.stderr


def test_a_diagnosis_has_the_names_of_hub_models(models, tmp_path):
    with local_hub(models) as (address, _):
        done = run_with_hub(words_of("diagnose", tmp_path), address, tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "save_model_diagnoses" / "instruct_math" / "diagnosis.json").is_file()
