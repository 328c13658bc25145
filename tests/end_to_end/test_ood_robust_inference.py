"""The LiveBench tasks from the command line: form of the answers, resuming, ids of models, wrong options."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ood_robust_inference import build_parser, main
from tests.commands import run_here
from tests.inference_llms.support import ROOT, ZOO, golden, needs_golden, read_json_lines, write_rows
from tests.vllm_marks import two_workers, vllm_installed

QUESTIONS = ZOO / "data" / "live_bench"
CODING = "save_gen_coding_livebench_results/coding"


def command(out: Path, *options: object) -> list[str]:
    words = ["--load_model_path", ZOO / "code", "--data_dir", QUESTIONS, "--output_dir", out]
    words += [] if "--backend" in options else ["--backend", "transformers"]
    return [sys.executable, "ood_robust_inference.py", *map(str, [*words, *options])]


def run(out: Path, *options: object) -> subprocess.CompletedProcess:
    return subprocess.run(command(out, *options), cwd=ROOT, capture_output=True, text=True, check=False)


def run_ood(out: Path, *options: object) -> subprocess.CompletedProcess:
    return run_here(main, command(out, *options)[2:])


def answers(out: Path, folder: str = CODING) -> dict[str, list[dict]]:
    """Rows of answers by the file's path in LiveBench's folder."""
    files = sorted((out / folder).rglob("model_answer/*.jsonl"))
    return {str(path.relative_to(out / folder)): read_json_lines(path) for path in files}


@pytest.fixture(scope="module")
def coding(tmp_path_factory) -> Path:
    """A run of the first eight questions, finished by a second command."""
    out = tmp_path_factory.mktemp("coding")
    done = run(out, "--evaluate_task", "coding", "--end_index", 8)
    assert done.returncode == 0, done.stderr
    assert "gen_ground_truth_judgment.py --bench-name m3_code/coding" in done.stdout
    first = answers(out)
    assert run_ood(out, "--evaluate_task", "coding").returncode == 0
    for file, rows in first.items():  # with the same ids and times
        assert all(row in answers(out)[file] for row in rows)
    return out


@needs_golden
def test_answers_have_livebenchs_form_one_file_per_task(coding):
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


def test_typos_is_scored_by_both_rules_on_replayed_completions(tmp_path):
    questions = read_json_lines(QUESTIONS / "language/typos/question.jsonl")
    right = [f"Here it is:\n{question['ground_truth']}" for question in questions]
    right[0] += "\nDone."
    rows = [{"id": q["question_id"], "completion": text} for q, text in zip(questions, right, strict=True)]
    write_rows(tmp_path / "replay/typos.jsonl", rows)
    options = ["--evaluate_task", "typos", "--backend", "replay", "--replay_from", tmp_path / "replay"]
    for _ in range(2):  # the second call finds its own answers
        done = run_ood(tmp_path, *options, "--model_id", "x")
        assert done.returncode == 0, done.stderr
        assert "typos: accuracy 0.9167, livebench_accuracy 1.0000, 12 examples" in done.stdout
    score = json.loads((tmp_path / "save_scores/single_model/code.json").read_text())["typos"]
    assert (score["accuracy"], score["livebench_accuracy"]) == (11 / 12, 1.0)
    assert (score["options"]["model_id"], score["options"]["evaluate_task"]) == ("x", "typos")
    (rows,) = answers(tmp_path, "save_gen_typos_livebench_results/language").values()
    assert [row["choices"][0]["turns"][0] for row in rows] == right


def test_another_model_cannot_replace_the_answers_of_a_model_id(coding):
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
    ("options", "message"),
    [
        (["--load_model_path", "nowhere"], "nowhere"),
        (["--model_id", "a/b", "--overwrite"], "--model_id 'a/b'"),
        (["--evaluate_task", "coding", "--start_index", 12], "--start_index 12"),
    ],
)
def test_a_wrong_option_is_one_line_and_writes_nothing(options, message, tmp_path):
    done = run_ood(tmp_path / "out", *options)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_default_task_is_the_papers():
    assert build_parser().parse_args(["--load_model_path", "m"]).evaluate_task == "instruction_following"


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
