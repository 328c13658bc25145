"""The LiveBench tasks from the command line: answers in LiveBench's form, resumed, never another model's."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inference_llms.command_line import check_inference_options
from ood_robust_inference import build_parser, main
from tests.commands import run_here
from tests.inference_llms.support import ROOT, golden, needs_golden, read_json_lines, write_rows
from tests.vllm_marks import two_workers, vllm_installed

ZOO = ROOT / "scripts" / "tiny_zoo"
QUESTIONS = ZOO / "data" / "live_bench"
FOLDERS = {
    "coding": "save_gen_coding_livebench_results/coding",
    "typos": "save_gen_typos_livebench_results/language",
}


def command(out: Path, *options: object) -> list[str]:
    words = ["--load_model_path", ZOO / "code", "--data_dir", QUESTIONS, "--output_dir", out]
    if "--backend" not in options:
        words += ["--backend", "transformers"]
    return [sys.executable, "ood_robust_inference.py", *map(str, [*words, *options])]


def run(out: Path, *options: object) -> subprocess.CompletedProcess:
    return subprocess.run(command(out, *options), cwd=ROOT, capture_output=True, text=True, check=False)


def run_ood(out: Path, *options: object) -> subprocess.CompletedProcess:
    return run_here(main, command(out, *options)[2:])


def answers(out: Path, task: str = "coding") -> dict[str, list[dict]]:
    """Rows of answers by the file's place in LiveBench's folder."""
    folder = out / FOLDERS[task]
    files = sorted(folder.rglob("model_answer/*.jsonl"))
    return {str(path.relative_to(folder)): read_json_lines(path) for path in files}


def ids(rows: list[dict]) -> dict[str, tuple]:
    return {row["question_id"]: (row["answer_id"], row["tstamp"]) for row in rows}


@pytest.fixture(scope="module")
def coding(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("coding")
    done = run(out, "--evaluate_task", "coding")
    assert done.returncode == 0, done.stderr
    assert "gen_ground_truth_judgment.py --bench-name m3_code/coding" in done.stdout
    return out


@needs_golden
def test_answers_have_livebenchs_form_a_file_for_each_of_its_tasks(coding):
    before = time.time()
    found = answers(coding)
    assert sorted(found) == [f"{task}/model_answer/code.jsonl" for task in ("LCB_generation", "coding_completion")]
    example = golden("livebench")["instruction_following"]["row_example"]
    for file, rows in found.items():
        questions = read_json_lines(QUESTIONS / "coding" / file.split("/")[0] / "question.jsonl")
        assert [row["question_id"] for row in rows] == [question["question_id"] for question in questions]
        for row in rows:
            assert row.keys() == example.keys() and row["choices"][0].keys() == example["choices"][0].keys()
            assert row["model_id"] == "code" and before - 600 < row["tstamp"] < before
            assert len(row["answer_id"]) == len(example["answer_id"])
    assert any(row["choices"][0]["turns"][0].strip() for rows in found.values() for row in rows)


def test_a_killed_run_goes_on_and_keeps_the_ids_and_times_of_its_answers(coding, tmp_path):
    raw = tmp_path / "save_raw_generations/single_model/code/coding.jsonl"
    options = ("--evaluate_task", "coding", "--end_index", 8)
    child = subprocess.Popen(
        command(tmp_path, *options), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    patience = time.monotonic() + 120
    while not (raw.is_file() and raw.stat().st_size):
        assert child.poll() is None and time.monotonic() < patience
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    kept = {row["id"]: row["time"] for row in read_json_lines(raw) if row}
    assert run_ood(tmp_path, *options).returncode == 0
    first = answers(tmp_path)
    assert run_ood(tmp_path, "--evaluate_task", "coding").returncode == 0
    second = answers(tmp_path)
    times = {question: stamp for rows in second.values() for question, (_, stamp) in ids(rows).items()}
    assert len(times) == 12 and kept.items() <= times.items()
    for file, rows in first.items():
        assert ids(rows).items() <= ids(second[file]).items()
    texts = {file: [row["choices"] for row in rows] for file, rows in second.items()}
    assert texts == {file: [row["choices"] for row in rows] for file, rows in answers(coding).items()}


def test_typos_is_scored_by_both_rules_on_replayed_completions(tmp_path):
    questions = read_json_lines(QUESTIONS / "language/typos/question.jsonl")
    right = [f"Here it is:\n{question['ground_truth']}" for question in questions]
    right[0] += "\nDone."
    rows = [{"id": q["question_id"], "completion": text} for q, text in zip(questions, right, strict=True)]
    write_rows(tmp_path / "replay/typos.jsonl", rows)
    done = run_ood(
        tmp_path,
        "--evaluate_task",
        "typos",
        "--backend",
        "replay",
        "--replay_from",
        tmp_path / "replay",
        "--model_id",
        "x",
    )
    assert done.returncode == 0, done.stderr
    assert "typos: accuracy 0.9167, livebench_accuracy 1.0000, 12 examples" in done.stdout
    scores = json.loads((tmp_path / "save_scores/single_model/code.json").read_text())["typos"]
    assert (scores["accuracy"], scores["livebench_accuracy"]) == (11 / 12, 1.0)
    assert [row["choices"][0]["turns"][0] for row in answers(tmp_path, "typos")["typos/model_answer/x.jsonl"]] == right
    again = run_ood(
        tmp_path,
        "--evaluate_task",
        "typos",
        "--backend",
        "replay",
        "--replay_from",
        tmp_path / "replay",
        "--model_id",
        "x",
    )
    assert again.returncode == 0, again.stderr


def test_another_model_cannot_take_over_the_answers_of_a_model_id(coding):
    before = answers(coding)
    done = run_ood(coding, "--load_model_path", ZOO / "math", "--evaluate_task", "coding", "--model_id", "code")
    assert done.returncode == 2 and "holds the answers of another model" in done.stderr and done.stderr.count("\n") == 1
    assert answers(coding) == before and not (coding / "save_raw_generations/single_model/math").exists()


def test_two_merges_never_share_a_model_id(tmp_path):
    merged = tmp_path / "merged"
    merged.mkdir()
    for file in (ZOO / "code").iterdir():
        (merged / file.name).symlink_to(file)
    record = {"tasks_name": "math_code", "name": "mask_merging/ties_merging/mask_0.2", "fingerprint": "f"}
    (merged / "merge_record.json").write_text(json.dumps(record))
    done = run_ood(tmp_path, "--load_model_path", merged, "--evaluate_task", "coding", "--end_index", 1)
    assert done.returncode == 0, done.stderr
    assert list(answers(tmp_path)) == ["LCB_generation/model_answer/math_code_mask_merging_ties_merging_mask_0.2.jsonl"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--evaluate_task", "math"], "--evaluate_task"),
        (["--load_model_path", "nowhere"], "nowhere"),
        (["--load_model_path", QUESTIONS], "config.json"),
        (["--livebench_release", "lately"], "--livebench_release lately"),
        (["--model_id", "a/b"], "--model_id 'a/b'"),
        (["--evaluate_task", "coding", "--start_index", 12], "--start_index 12"),
        (["--data_dir", "nowhere"], "--data_dir nowhere"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_nothing(options, told, tmp_path):
    done = run_ood(tmp_path / "out", *options)
    assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_defaults_are_the_papers():
    options = build_parser().parse_args(["--load_model_path", "m"])
    check_inference_options(options)
    assert (options.evaluate_task, options.tensor_parallel_size) == ("instruction_following", None)


@pytest.mark.vllm
@vllm_installed
@two_workers
def test_vllm_with_two_workers_gives_the_answers_of_transformers(coding, tmp_path):
    done = run(tmp_path, "--evaluate_task", "coding", "--backend", "vllm", "--tensor_parallel_size", 2)
    assert done.returncode == 0, done.stderr
    texts, expected = (
        {row["question_id"]: row["choices"] for rows in answers(out).values() for row in rows}
        for out in (tmp_path, coding)
    )
    assert texts == expected
