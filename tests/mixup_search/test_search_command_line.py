"""Searches from the command line, on the tiny models: the same table however they are run, interrupted or not."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from scripts import search_mixup
from tests.commands import run_here
from tests.inference_llms.support import ROOT

ZOO = ROOT / "scripts" / "tiny_zoo"
TABLE = 'SELECT candidate, ratio_instruct, ratio_math, task, part, examples, "right" FROM results ORDER BY 1, 4, 5, 6'
ANSWERS = 'SELECT candidate, task, part, example, completion, "right" FROM answers ORDER BY 1, 2, 3, 4'


def command(out: Path, *options: object) -> list[str]:
    words = ["scripts/search_mixup.py", "--merge_instruct", "--merge_math", "--pretrained_model", ZOO / "base"]
    for role in ("instruct", "math"):
        words += [f"--{role}_model", ZOO / role]
    words += ["--merging_method_name", "average_merging", "--tasks", "alpaca_eval", "gsm8k", "--output_dir", out]
    words += ["--data_dir", ZOO / "data", "--num_draws", 2, "--num_validation", 8, "--num_test", 8]
    given = {str(option) for option in options}
    defaults = {"--backend": "transformers", "--tensor_parallel_size": 1}
    words += [word for name, value in defaults.items() if name not in given for word in (name, value)]
    return [sys.executable, *map(str, words), *map(str, options)]


def search(out: Path, *options: object, expect: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(command(out, *options), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == expect, done.stderr
    return done


def search_here(out: Path, *options: object, expect: int = 0) -> subprocess.CompletedProcess:
    done = run_here(search_mixup.main, command(out, *options)[2:])
    assert done.returncode == expect, done.stderr
    return done


def results_file(out: Path) -> Path:
    (path,) = out.glob("save_mixup_searches/instruct_math/*.sqlite")
    return path


def rows(out: Path, query: str = TABLE) -> list[tuple]:
    connection = sqlite3.connect(results_file(out), timeout=30)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def wait_for_answers(out: Path, number: int, process: subprocess.Popen) -> None:
    for _ in range(9000):
        if list(out.glob("save_mixup_searches/instruct_math/*.sqlite")):
            try:
                if len(rows(out, "SELECT 1 FROM answers")) >= number:
                    return
            except sqlite3.OperationalError:  # the tables are being made
                pass
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    raise AssertionError("no answers came")


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    out = tmp_path_factory.mktemp("searched")
    return out, search(out)


def test_a_search_scores_draws_references_and_tests_its_choice(searched):
    out, done = searched
    table = rows(out)
    validated = {row[0] for row in table if row[4] == "validation"}
    assert validated == {"draw 0", "draw 1", "equal ratios", "instruct alone", "math alone"}
    tested = {row[0] for row in table if row[4] == "test"}
    assert "equal ratios" in tested and len(tested) == 2 and tested < validated
    assert all(row[5] == 8 for row in table)
    score = {(row[0], row[3]): row[6] / row[5] for row in table if row[4] == "validation"}
    assert score["math alone", "gsm8k"] > score["instruct alone", "gsm8k"]
    assert score["instruct alone", "alpaca_eval"] > score["math alone", "alpaca_eval"]
    known = set(rows(out, "SELECT task, cut_off IS NULL, readable IS NULL FROM answers"))
    assert known == {("alpaca_eval", 0, 1), ("gsm8k", 0, 0)}, "gsm8k has a form of answer, alpaca_eval has none"
    assert "report.html" in done.stdout and (results_file(out).parent / "average_merging_mixup_seed_0_report").is_dir()


def test_the_parts_share_no_example(searched):
    asked = rows(searched[0], "SELECT DISTINCT task, part, example FROM answers")
    parts = {
        (task, part): {row[2] for row in asked if row[:2] == (task, part)}
        for task in ("gsm8k", "alpaca_eval")
        for part in ("validation", "test")
    }
    for task in ("gsm8k", "alpaca_eval"):
        assert len(parts[task, "validation"]) == len(parts[task, "test"]) == 8
        assert not parts[task, "validation"] & parts[task, "test"]


def test_a_draw_answers_as_the_main_job_at_its_seed_does(searched, tmp_path):
    """The whole set by the main job, of which the search asked a part."""
    main = ["merge_llms_instruct_math_code.py", "--merge_instruct", "--merge_math", "--pretrained_model", ZOO / "base"]
    for role in ("instruct", "math"):
        main += [f"--{role}_model", ZOO / role]
    main += ["--merging_method_name", "average_merging", "--mixup", "--alpha", 0.5, "--seed", 1, "--tasks", "gsm8k"]
    main += ["--data_dir", ZOO / "data", "--output_dir", tmp_path, "--backend", "transformers"]
    done = subprocess.run([sys.executable, *map(str, main)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    import jsonlines

    (raw,) = tmp_path.glob("save_raw_generations/**/gsm8k.jsonl")
    with jsonlines.open(raw) as lines:
        whole = {line["id"]: line["completion"] for line in lines}
    query = "SELECT example, completion FROM answers WHERE candidate = 'draw 1' AND task = 'gsm8k'"
    asked = dict(rows(searched[0], query))
    assert asked and asked == {example: whole[example] for example in asked}


def test_typed_again_it_asks_nothing(searched):
    before = rows(searched[0], "SELECT * FROM answers")
    again = search_here(searched[0])
    assert "engine start" not in again.stdout
    assert rows(searched[0], "SELECT * FROM answers") == before


def test_killed_and_typed_again_it_loses_and_repeats_nothing(searched, tmp_path):
    process = subprocess.Popen(
        command(tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_for_answers(tmp_path, 30, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stored = rows(tmp_path, "SELECT * FROM answers")
    search_here(tmp_path)
    assert rows(tmp_path, "SELECT * FROM answers")[: len(stored)] == stored
    assert rows(tmp_path) == rows(searched[0]) and rows(tmp_path, ANSWERS) == rows(searched[0], ANSWERS)


def test_two_processes_share_one_results_file(searched, tmp_path):
    processes = [
        subprocess.Popen(command(tmp_path), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert rows(tmp_path) == rows(searched[0])


def test_with_rungs_only_the_better_half_is_asked_everything(tmp_path):
    search_mixup.main(command(tmp_path, "--num_draws", 3, "--rungs", 2, "--num_test", 2)[2:])
    table = rows(tmp_path)
    draws = {row[0] for row in table if row[0].startswith("draw") and row[4] == "validation"}
    whole = {row[0] for row in table if row[0].startswith("draw") and row[4] == "validation" and row[5] == 8}
    assert len(draws) == 3 and len(whole) == 2


def test_an_optimiser_draws_by_what_it_has_seen(tmp_path):
    options = ("--draw_by", "optimise", "--num_draws", 3, "--num_validation", 2, "--num_test", 2)
    search_mixup.main(command(tmp_path, *options)[2:])
    ratios = {row[0]: row[1] for row in rows(tmp_path) if row[0].startswith("draw")}
    assert len(ratios) == 3 and len(set(ratios.values())) == 3


def test_programs_are_run_where_the_user_allows_it(tmp_path):
    """The model for code is not merged here: programs are wrong, but judged."""
    options = ("--tasks", "human_eval", "--allow_code_execution", "--num_draws", 1, "--num_validation", 2)
    search_mixup.main(command(tmp_path, *options, "--num_test", 2)[2:])
    assert {row[3] for row in rows(tmp_path)} == {"human_eval"}


def ray_actors(process: subprocess.Popen) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and "ray::_Actor" in " ".join(child.cmdline())
    ]


@pytest.mark.alone
def test_ray_gives_the_same_table_though_an_actor_and_then_the_driver_are_killed(searched, tmp_path):
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    assert ray
    words = command(tmp_path, "--ray", "local", "--ray_engines", 2)
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    started = psutil.Process(process.pid)
    wait_for_answers(tmp_path, 16, process)
    actors = ray_actors(process)
    actors[0].kill()
    wait_for_answers(tmp_path, 48, process)
    everything = started.children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(everything, timeout=20)
    for left in everything:
        if left.is_running():
            left.kill()
    stored = rows(tmp_path, "SELECT * FROM answers")
    search(tmp_path, "--ray", "local", "--ray_engines", 2)
    assert rows(tmp_path, "SELECT * FROM answers")[: len(stored)] == stored
    assert rows(tmp_path) == rows(searched[0]) and rows(tmp_path, ANSWERS) == rows(searched[0], ANSWERS)


BAD = {
    "a rate above one": (["--merging_method_name", "ties_merging", "--param_value_mask_rate", "0.5", "1.5"], "param_"),
    "a range backwards": (["--merging_method_name", "task_arithmetic", "--scaling_coefficient", "2:1"], "scaling_"),
    "an option without use": (["--scaling_coefficient", "0.5", "1"], "--scaling_coefficient"),
    "no number": (["--alpha", "much"], "--alpha"),
    "a negative seed": (["--seed", "-1"], "--seed"),
    "no draws": (["--num_draws", "0"], "--num_draws"),
    "rungs that fall": (["--rungs", "6", "4"], "--rungs"),
    "no validation data": (["--num_validation", "60"], "--num_validation"),
    "a dtype that vLLM has already": (["--backend", "vllm", "--engine_dtype", "auto"], "--engine_dtype"),
    "programs that may not run": (["--tasks", "human_eval"], "--allow_code_execution"),
    "a folder as results file": (["--results", "."], "."),
    "engines without a cluster": (["--ray_engines", "2"], "--ray_engines"),
    "more engines than the cluster has room for": (["--ray", "local", "--ray_engines", "4096"], "--ray_engines"),
    "workers of vLLM without vLLM": (["--distributed_executor_backend", "ray"], "--distributed_executor_backend"),
    "an alpha for a grid": (["--draw_by", "grid", "--alpha", "0.3"], "--alpha"),
    "an alpha that draws one model alone": (["--alpha", "0"], "--alpha"),
    "validation data that are not there": (["--validation_dir", "."], "--validation_dir"),
    "a report of nothing": (["--report"], "no such file"),
}


@pytest.mark.parametrize(("options", "named"), BAD.values(), ids=BAD.keys())
def test_what_makes_no_sense_is_told_in_one_line(options, named, tmp_path):
    done = search_here(tmp_path / "out", *options, expect=2)
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ") and named in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_results_file_of_another_search_is_told_and_kept(searched, tmp_path):
    path = results_file(searched[0])
    before = path.read_bytes()
    done = search_here(tmp_path, "--results", path, "--num_draws", 3, expect=2)
    assert done.stderr.count("\n") == 1 and "num_draws" in done.stderr and path.name in done.stderr
    assert path.read_bytes() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_results_file_that_cannot_be_written_is_told(searched, tmp_path):
    path = tmp_path / "results.sqlite"
    path.write_bytes(results_file(searched[0]).read_bytes())
    path.chmod(0o444)
    done = search_here(tmp_path, "--results", path, expect=2)
    assert done.stderr.count("\n") == 1 and str(path) in done.stderr


def test_results_are_exported_and_reported_without_a_model(searched, tmp_path):
    search_here(searched[0], "--export", tmp_path / "results.csv")
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert len(lines) == 1 + len(rows(searched[0]))
    only = ["--results", results_file(searched[0]), "--report"]
    words = [sys.executable, "scripts/search_mixup.py", *map(str, only)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "draw 1" in done.stdout and "engine start" not in done.stdout
