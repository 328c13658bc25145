"""The main job on the tiny models: merge, infer, score; killed and rerun; on real vLLM."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inference_llms.task import AnswerFiles
from inference_llms.tasks import TASKS, gsm8k
from merge_llms_instruct_math_code import main
from tests.commands import run_here
from tests.inference_llms.support import ROOT, read_json_lines, write_rows
from tests.vllm_marks import two_workers, vllm_installed

ZOO = ROOT / "scripts" / "tiny_zoo"


def command(out: Path, *roles: str, backend: str = "transformers", more: str = "") -> list[str]:
    models = ["--pretrained_model", ZOO / "base"]
    for role in roles:
        models += [f"--merge_{role}", f"--{role}_model", ZOO / role]
    running = ["--data_dir", ZOO / "data", "--output_dir", out, "--backend", backend, "--tensor_parallel_size", 2]
    words = [sys.executable, "merge_llms_instruct_math_code.py", *models, *running, *more.split()]
    return [str(word) for word in words]


def run_main(words: list[str]) -> subprocess.CompletedProcess:
    return run_here(main, words[2:])


def finish(words: list[str]) -> str:
    done = run_main(words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def scores(out: Path, tasks: str, name: str) -> dict[str, dict]:
    return json.loads((out / "save_scores" / tasks / f"{name}.json").read_text())


def test_a_merge_of_three_keeps_its_models_skills(tmp_path):
    """The equal-ratio average of all three, on all five tasks, each with its own model's tokenizer."""
    average = "--merging_method_name average_merging"
    finish(command(tmp_path, "instruct", "math", "code", more=average))
    of_task = scores(tmp_path, "instruct_math_code", "average_merging")
    assert list(of_task) == ["alpaca_eval", "gsm8k", "MATH", "human_eval", "mbpp"]
    # The base has 37, 30, 30 and 25 per cent.
    assert of_task["gsm8k"]["accuracy"] > 0.57 and of_task["MATH"]["accuracy"] > 0.5
    for name in ("human_eval", "mbpp"):
        task, files = TASKS[name], tuple(map(Path, of_task[name]["files"]))
        task.evaluator.run(AnswerFiles(task, files, of_task[name]["evaluator_command"], ZOO / "data"))
        assert task.evaluator.read(files).score > 0.5
    answers = json.loads(Path(of_task["alpaca_eval"]["files"][0]).read_text())
    folder = tmp_path / "save_merge_models" / "instruct_math_code" / "instruct" / "average_merging"
    assert {row["generator"] for row in answers} == {str(folder)}


def answers_of(path: Path) -> list[tuple]:
    """The rows of raw completions except their times, sorted by id."""
    return sorted((str(row["id"]), row["prompt"], row["completion"]) for row in read_json_lines(path))


def test_a_command_killed_while_it_generates_is_finished_by_a_rerun(tmp_path):
    more = "--merging_method_name average_merging --mixup_lambda 0.4"
    name = "average_merging_mixup_lambda_0.4"
    finish(command(tmp_path / "undisturbed", "instruct", "math", more=more))

    killed = tmp_path / "killed"
    raw = killed / "save_raw_generations" / "instruct_math" / name / "gsm8k.jsonl"
    child = subprocess.Popen(
        command(killed, "instruct", "math", more=more),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (raw.is_file() and raw.stat().st_size):
            assert child.poll() is None, "the run ended before it could be killed"
            time.sleep(0.005)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    model = killed / "save_merge_models" / "instruct_math" / "math" / name / "model.safetensors"
    made = model.stat().st_mtime_ns

    assert "already merged" in finish(command(killed, "instruct", "math", more=more))
    assert model.stat().st_mtime_ns == made
    for task in ("alpaca_eval", "gsm8k", "MATH"):
        path = raw.with_name(f"{task}.jsonl")
        undisturbed = tmp_path / "undisturbed" / path.relative_to(killed)
        assert answers_of(path) == answers_of(undisturbed)


AVERAGE = "--merging_method_name average_merging --end_index 5 "


def refused(done: subprocess.CompletedProcess, said: str) -> None:
    error = done.stderr
    assert done.returncode == 2 and error.startswith("error: ") and error.count("\n") == 1 and said in error, error


def test_runs_of_single_tasks_accumulate_and_the_scored_model_is_deleted(tmp_path):
    for more in ("--tasks MATH", "--tasks alpaca_eval gsm8k --delete_merged_model"):
        finish(command(tmp_path, "instruct", "math", more=AVERAGE + more))
    of_task = scores(tmp_path, "instruct_math", "average_merging")
    assert [(task, score["examples"]) for task, score in of_task.items()] == [
        ("alpaca_eval", 5),
        ("gsm8k", 5),
        ("MATH", 5),
    ]
    assert not list(tmp_path.glob("save_merge_models/**/*.safetensors"))
    assert not list(tmp_path.glob("save_merge_models/instruct_math/*/average_merging"))


def test_another_merge_of_the_same_name_only_replaces_scores(tmp_path):
    more = AVERAGE + "--delete_merged_model --tasks "
    finish(command(tmp_path, "instruct", "math", more=more + "gsm8k"))
    before = scores(tmp_path, "instruct_math", "average_merging")
    another = more + f"MATH --math_model {ZOO / 'code'}"
    refused(run_main(command(tmp_path, "instruct", "math", more=another)), "results of another model (gsm8k)")
    assert scores(tmp_path, "instruct_math", "average_merging") == before
    finish(command(tmp_path, "instruct", "math", more=another + " --overwrite"))
    assert list(scores(tmp_path, "instruct_math", "average_merging")) == ["MATH"]


def test_completions_are_replayed_without_any_model(tmp_path):
    out, given = tmp_path / "out", tmp_path / "replay"
    write_rows(given / "alpaca_eval.jsonl", [{"id": n, "completion": "Hello"} for n in range(5)])
    more = AVERAGE + f"--tasks alpaca_eval gsm8k --replay_from {given}"
    replay = command(out, "instruct", "math", backend="replay", more=more)
    refused(run_main(replay), "gsm8k.jsonl does not exist")
    assert not out.exists()

    golds = [gsm8k.gold_number(example.row) for example in gsm8k.TASK.load_examples(ZOO / "data")[:5]]
    for golds_right in (3, 5):
        rows = [{"id": n, "completion": f"The answer is: {gold:.0f}"} for n, gold in enumerate(golds)]
        for row in rows[golds_right:]:
            row["completion"] = ""
        write_rows(given / "gsm8k.jsonl", rows)
        if golds_right == 5:
            refused(run_main(replay), "results of another run")
            replay.append("--overwrite")
        finish(replay)
        of_task = scores(out, "instruct_math", "average_merging")
        assert list(of_task) == ["alpaca_eval", "gsm8k"] and of_task["gsm8k"]["accuracy"] == golds_right / 5


def test_models_of_other_names_need_tasks(tmp_path):
    models = ["--pretrained_model", ZOO / "base", "--models", f"math={ZOO / 'math'}", f"chat={ZOO / 'instruct'}"]
    running = ["--merging_method_name", "average_merging", "--output_dir", tmp_path, "--backend", "transformers"]
    running += ["--data_dir", ZOO / "data", "--end_index", 3]

    def run(*more: str) -> subprocess.CompletedProcess:
        return run_here(main, [*models, *running, *more])

    refused(run(), "--tasks: give the tasks to run; none belong to a model named chat")
    assert not (tmp_path / "save_merge_models").exists()
    for more in (["--merge_only"], ["--tasks", "gsm8k", "alpaca_eval"]):
        done = run(*more)
        assert done.returncode == 0, done.stderr
    assert list(scores(tmp_path, "math_chat", "average_merging")) == ["alpaca_eval", "gsm8k"]


def test_models_named_like_roles_run_the_tasks_of_these_roles(tmp_path):
    models = ["--pretrained_model", ZOO / "base", "--models", f"math={ZOO / 'math'}", f"instruct={ZOO / 'instruct'}"]
    running = ["--output_dir", tmp_path, "--backend", "transformers", "--data_dir", ZOO / "data", "--end_index", 2]
    done = run_here(main, [*models, *running, "--merging_method_name", "magmax"])
    assert done.returncode == 0, done.stderr
    assert list(scores(tmp_path, "math_instruct", "magmax")) == ["alpaca_eval", "gsm8k", "MATH"]


@pytest.mark.vllm
@vllm_installed
@two_workers
def test_both_models_tasks_run_one_engine_after_the_other(tmp_path):
    """Two tensor-parallel workers for instruct's task, freed, and two for math's; scores as elsewhere."""
    more = "--merging_method_name ties-merging --tasks alpaca_eval gsm8k --end_index 20"
    finish(command(tmp_path / "transformers", "instruct", "math", more=more))
    typed = command(tmp_path / "vllm", "instruct", "math", backend="vllm", more=more)
    done = subprocess.run(typed, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    by_vllm, by_transformers = (
        scores(tmp_path / backend, "instruct_math", "ties_merging") for backend in ("vllm", "transformers")
    )
    assert by_vllm["gsm8k"]["examples"] == 20 and by_vllm["gsm8k"]["backend"] == "vllm"
    # Rounding may turn a tie between two tokens in one or two of twenty.
    assert abs(by_vllm["gsm8k"]["accuracy"] - by_transformers["gsm8k"]["accuracy"]) <= 0.1
    answers = [
        [row["output"] for row in json.loads(Path(of_task["alpaca_eval"]["files"][0]).read_text())]
        for of_task in (by_vllm, by_transformers)
    ]
    assert sum(one == other for one, other in zip(*answers, strict=True)) >= 18
