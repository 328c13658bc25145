"""python -m inference_llms: one-line errors, names of outputs, a killed run, and the identity of a model."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

from inference_llms.command_line import add_inference_options, model_source
from inference_llms.model_folder import file_hashes, model_files, model_fingerprint, output_places, weights_fingerprint
from tests.inference_llms.support import OWN_DATA, ROOT, ZOO, read_json_lines, run_command, run_command_here, write_rows
from utils.errors import UserError
from utils.output_places import OutputPlaces


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "models/tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    save_weights(folder, numpy.arange(1_000_000, dtype=numpy.float32))
    return folder


def save_weights(folder: Path, values: numpy.ndarray) -> None:
    save_file({"a": values}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--tasks gsm9k", "gsm9k"),
        ("--tasks gsm8k gsm8k", "twice"),
        ("--tasks alpaca_evl --judge_model x", "unknown tasks: alpaca_evl (near: alpaca_eval); choose from"),
        ("", "--tasks"),
        ("--tasks gsm8k --backend replay", "--replay_from"),
        ("--tasks gsm8k --replay_from x", "--backend replay"),
        ("--tasks gsm8k --start_index -1", "--start_index"),
        ("--tasks gsm8k --start_index 5 --end_index 5", "--end_index"),
        ("--tasks gsm8k --tensor_parallel_size 0", "--tensor_parallel_size"),
        ("--tasks gsm8k --tensor_parallel_size two", "'two' is not a whole number"),
        ("--tasks gsm8k --max_tokens 0", "--max_tokens"),
        ("--tasks gsm8k --max_tokens 9 --backend replay --replay_from x", "--max_tokens"),
        ("--tasks gsm8k --engine_dtype auto --backend vllm", "--engine_dtype auto has no effect"),
        ("--tasks gsm8k --overwr", "--overwr"),
        ("--tasks alpaca_eval --judge_model=", "--judge_model is empty; give its value"),
        ("--tasks gsm8k --judge_model x", "--judge_model has no effect without the task alpaca_eval"),
        ("--tasks lm_eval:arc_easy --data_dir data", "--data_dir has no effect on tasks named lm_eval:NAME"),
        ("--tasks gsm8k --show gsm8k", "--tasks has no effect with --show"),
        (f"--tasks gsm8k --output_dir {__file__}", "--output_dir"),
        ("--tasks gsm8k --backend replay --replay_from x --data_dir nowhere", "nowhere"),
        ("--tasks human_eval --backend transformers", "some/model"),
    ],
)
def test_a_mistake_is_one_line_with_status_2_and_leaves_nothing(tmp_path, options, message):
    out = tmp_path / "out"
    finished = run_command_here("--load_model_path", "some/model", "--output_dir", out, *options.split())
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: ") and finished.stderr.count("\n") == 1
    assert message in finished.stderr
    assert not out.exists()


def test_scores_are_printed_with_the_evaluators_command(tmp_path):
    write_rows(tmp_path / "replay/alpaca_eval.jsonl", [{"id": 0, "completion": "Hello"}])
    finished = run_command_here(
        *("--load_model_path", "some/model", "--tasks", "alpaca_eval", "--data_dir", OWN_DATA, "--end_index", 1),
        *("--backend", "replay", "--replay_from", tmp_path / "replay", "--output_dir", tmp_path / "my out"),
    )
    assert finished.returncode == 0, finished.stderr
    assert "alpaca_eval: 1 examples" in finished.stdout
    assert f"'{tmp_path}/my out/save_gen_instruct_responses_results" in finished.stdout
    assert " --output_path " in finished.stdout  # where tables read the result


def test_a_killed_run_is_finished_by_the_same_command(tmp_path):
    def options(out: Path) -> list[str]:
        words = ["--load_model_path", ZOO / "math", "--backend", "transformers", "--tensor_parallel_size", 1]
        return list(map(str, [*words, "--tasks", "gsm8k", "MATH", "--data_dir", ZOO / "data", "--output_dir", out]))

    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    expected = run_command_here(*options(undisturbed))
    assert expected.returncode == 0, expected.stderr
    raw = killed / "save_raw_generations/single_model/math/gsm8k.jsonl"
    command = [sys.executable, "-m", "inference_llms", *options(killed)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        patience = time.monotonic() + 120
        while not (raw.is_file() and raw.stat().st_size):
            assert child.poll() is None and time.monotonic() < patience
            time.sleep(0.005)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert not (killed / "save_scores").exists()
    finished = run_command(*options(killed))
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.replace("/killed/", "/undisturbed/") == expected.stdout
    rows, expected_rows = (
        sorted(({**row, "time": 0} for row in read_json_lines(path)), key=lambda row: row["id"])
        for path in (raw, undisturbed / raw.relative_to(killed))
    )
    assert rows == expected_rows


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_that_changes_before_it_is_loaded_completes_nothing(tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(ZOO / "math", folder)
    parser = argparse.ArgumentParser()
    add_inference_options(parser)
    source = model_source(parser.parse_args(["--backend", "transformers", "--tensor_parallel_size", "1"]), folder)
    source.open_engine().close()
    (folder / name).touch()
    with pytest.raises(UserError, match=rf"{folder / name}: was changed while it was being read"):
        source.open_engine()


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


def test_a_fingerprint_depends_on_all_content_but_not_on_the_place(model, tmp_path):
    before = model_fingerprint(file_hashes(model))
    moved = model.rename(tmp_path / "moved")
    assert model_fingerprint(file_hashes(moved)) == before
    fingerprints = {before}
    values = numpy.arange(1_000_000, dtype=numpy.float32) * 1.0001
    for changed_value in (0, 1):  # the second time one value in the middle
        values[654_321] += changed_value
        save_weights(moved, values)
        fingerprints.add(model_fingerprint(file_hashes(moved)))
    (moved / "tokenizer.json").write_text('{"added": 1}')
    assert len({*fingerprints, model_fingerprint(file_hashes(moved))}) == 4


def test_a_merge_is_identified_by_its_record_and_its_weights(model, tmp_path):
    assert output_places(model, tmp_path) == OutputPlaces(tmp_path, "single_model", "tiny")
    record = {"tasks_name": "instruct_math", "name": "mask_merging/ties/mask_0.2_0.2", "fingerprint": "1"}
    (model / "merge_record.json").write_text(json.dumps(record))
    assert output_places(model, tmp_path) == OutputPlaces(tmp_path, "instruct_math", record["name"])
    assert weights_fingerprint(model, file_hashes(model)) == "1"
    before = model_fingerprint(file_hashes(model))
    save_weights(model, numpy.zeros(1_000_000, dtype=numpy.float32))
    assert model_fingerprint(file_hashes(model)) != before
    (model / "merge_record.json").write_text(json.dumps({"tasks_name": "a", "name": "../../b"}))
    with pytest.raises(UserError, match="below --output_dir"):
        output_places(model, tmp_path)


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
