"""python -m inference_llms: mistakes in one line, names of outputs, whose results they are."""

import argparse
import json
import shutil

import numpy
import pytest
from safetensors.numpy import save_file

from inference_llms.command_line import add_inference_options, model_source
from inference_llms.model_folder import file_hashes, model_files, model_fingerprint, output_places, weights_fingerprint
from tests.inference_llms.support import ROOT, run_command_here, write_rows
from utils.errors import UserError
from utils.output_places import OutputPlaces


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "models/tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    save_weights(folder, numpy.arange(1_000_000, dtype=numpy.float32))
    return folder


def save_weights(folder, values):
    save_file({"a": values}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--tasks", "gsm9k"], "gsm9k"),
        (["--tasks", "gsm8k", "gsm8k"], "twice"),
        ([], "--tasks"),
        (["--tasks", "gsm8k", "--backend", "replay"], "--replay_from"),
        (["--tasks", "gsm8k", "--replay_from", "x"], "--backend replay"),
        (["--tasks", "gsm8k", "--start_index", "-1"], "--start_index"),
        (["--tasks", "gsm8k", "--start_index", "5", "--end_index", "5"], "--end_index"),
        (["--tasks", "gsm8k", "--tensor_parallel_size", "0"], "--tensor_parallel_size"),
        (["--tasks", "gsm8k", "--tensor_parallel_size", "two"], "'two' is not a whole number"),
        (["--tasks", "gsm8k", "--max_tokens", "0"], "--max_tokens"),
        (["--tasks", "gsm8k", "--max_tokens", "9", "--backend", "replay", "--replay_from", "x"], "--max_tokens"),
        (["--tasks", "gsm8k", "--engine_dtype", "auto", "--backend", "vllm"], "--engine_dtype auto has no effect"),
        (["--tasks", "gsm8k", "--overwr"], "--overwr"),
        (["--tasks", "gsm8k", "--output_dir", __file__], "--output_dir"),
        (["--tasks", "gsm8k", "--backend", "replay", "--replay_from", "x", "--data_dir", "nowhere"], "nowhere"),
        (["--tasks", "human_eval", "--backend", "transformers"], "some/model"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_with_status_2_and_leaves_nothing(tmp_path, options, complaint):
    out = tmp_path / "out"
    finished = run_command_here("--load_model_path", "some/model", "--output_dir", out, *options)
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: ") and finished.stderr.count("\n") == 1
    assert complaint in finished.stderr
    assert not out.exists()


def test_a_model_folder_must_hold_a_config_and_weights(model, tmp_path):
    assert [path.name for path in model_files(model)] == ["config.json", "tokenizer.json", "model.safetensors"]
    (model / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights"):
        model_files(model)
    (model / "config.json").unlink()
    with pytest.raises(UserError, match=r"no config\.json"):
        model_files(model)
    with pytest.raises(UserError, match="not a folder"):
        model_files(tmp_path / "nowhere")


def test_a_fingerprint_goes_with_the_content_wherever_the_folder_lies(model, tmp_path):
    before = model_fingerprint(file_hashes(model))
    moved = model.rename(tmp_path / "moved")
    assert model_fingerprint(file_hashes(moved)) == before
    save_weights(moved, numpy.arange(1_000_000, dtype=numpy.float32) * 1.0001)
    other_weights = model_fingerprint(file_hashes(moved))
    values = numpy.arange(1_000_000, dtype=numpy.float32) * 1.0001
    values[654_321] += 1  # one value in the middle
    save_weights(moved, values)
    assert model_fingerprint(file_hashes(moved)) != other_weights
    (moved / "tokenizer.json").write_text('{"added": 1}')
    assert len({before, other_weights, model_fingerprint(file_hashes(moved))}) == 3


def test_a_merge_is_known_by_its_record_and_lies_with_its_merges_results(model, tmp_path):
    assert output_places(model, tmp_path) == OutputPlaces(tmp_path, "single_model", "tiny")
    record = {"tasks_name": "instruct_math", "name": "mask_merging/ties/mask_0.2_0.2", "fingerprint": "1"}
    (model / "merge_record.json").write_text(json.dumps(record))
    assert output_places(model, tmp_path) == OutputPlaces(tmp_path, "instruct_math", record["name"])
    assert weights_fingerprint(model, file_hashes(model)) == "1"


def test_weights_changed_beside_a_merge_record_are_another_model(model):
    (model / "merge_record.json").write_text(json.dumps({"tasks_name": "a_b", "name": "n", "fingerprint": "1"}))
    before = model_fingerprint(file_hashes(model))
    save_weights(model, numpy.zeros(1_000_000, dtype=numpy.float32))
    assert model_fingerprint(file_hashes(model)) != before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_that_changes_before_it_is_loaded_completes_nothing(tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(ROOT / "scripts" / "tiny_zoo" / "math", folder)
    parser = argparse.ArgumentParser()
    add_inference_options(parser)
    source = model_source(parser.parse_args(["--backend", "transformers", "--tensor_parallel_size", "1"]), folder)
    source.open_engine().close()
    (folder / name).touch()
    with pytest.raises(UserError, match=rf"{folder / name}: was changed while it was being read"):
        source.open_engine()


@pytest.mark.parametrize(
    "record",
    [
        {"fingerprint": []},
        {"fingerprint": "1", "outputs": 5},
        {"fingerprint": "1", "outputs": [{"name": "model.safetensors"}]},
        {"tasks_name": {}, "name": "x"},
        {"tasks_name": "a\0b", "name": "x"},
    ],
)
def test_a_merge_record_of_wrong_types_is_one_line(model, record):
    (model / "merge_record.json").write_text(json.dumps(record))
    hashes = file_hashes(model)
    for read in (lambda folder: weights_fingerprint(folder, hashes), lambda folder: output_places(folder, folder)):
        with pytest.raises(UserError, match=r"merge_record\.json: .*; merge again, or remove the file"):
            read(model)


def test_names_never_lead_out_of_the_output_folder(model, tmp_path):
    (model / "merge_record.json").write_text(json.dumps({"tasks_name": "a", "name": "../../b"}))
    with pytest.raises(UserError, match="below --output_dir"):
        output_places(model, tmp_path)


def test_scores_are_printed_with_the_evaluators_command(tmp_path):
    write_rows(tmp_path / "data/alpaca_eval.json", [])
    (tmp_path / "data/alpaca_eval.json").write_text('[{"instruction": "Hi", "dataset": "d"}]')
    write_rows(tmp_path / "replay/alpaca_eval.jsonl", [{"id": 0, "completion": "Hello"}])
    finished = run_command_here(
        *("--load_model_path", "some/model", "--tasks", "alpaca_eval", "--data_dir", tmp_path / "data"),
        *("--backend", "replay", "--replay_from", tmp_path / "replay", "--output_dir", tmp_path / "my out"),
    )
    assert finished.returncode == 0, finished.stderr
    assert "alpaca_eval: 1 examples" in finished.stdout
    assert f"'{tmp_path}/my out/save_gen_instruct_responses_results" in finished.stdout
