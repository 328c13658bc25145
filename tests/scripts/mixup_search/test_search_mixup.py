"""Searches from the command line on the tiny models: killed and resumed, reported, on Ray, with wrong options."""

import json
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import merge_llms_instruct_math_code as main_job
from scripts import search_mixup
from scripts.mixup_search.store import SearchStore
from tests.commands import run_here
from utils.whole_files import locked

ROOT = Path(__file__).parents[3]
ZOO = ROOT / "scripts" / "tiny_zoo"
MODELS = ["--merge_instruct", "--merge_math", "--pretrained_model", ZOO / "base", "--instruct_model", ZOO / "instruct"]
MODELS += ["--math_model", ZOO / "math", "--merging_method_name", "average_merging", "--data_dir", ZOO / "data"]
TABLE = 'SELECT candidate, ratio_instruct, ratio_math, task, part, examples, "right" FROM results ORDER BY 1, 4, 5, 6'
ANSWERS = 'SELECT candidate, task, part, example, completion, "right" FROM answers ORDER BY 1, 2, 3, 4'


def words(out: Path, *options: object) -> list[str]:
    common = [*MODELS, "--tasks", "alpaca_eval", "gsm8k", "--output_dir", out, "--backend", "transformers"]
    common += ["--num_draws", 2, "--num_validation", 8, "--num_test", 8]
    return [str(word) for word in (*common, *options)]


def start(out: Path, *options: object) -> subprocess.Popen:
    command = [sys.executable, "scripts/search_mixup.py", *words(out, *options)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def search(out: Path, *options: object, expect: int = 0) -> subprocess.CompletedProcess:
    """Run a search in this process."""
    done = run_here(search_mixup.main, words(out, *options))
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
            except sqlite3.OperationalError:  # the tables are being created
                pass
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    raise AssertionError("there are no answers")


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> tuple[Path, str]:
    """A search as a process: its folder and its output."""
    out = tmp_path_factory.mktemp("searched")
    process = start(out)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return out, output


def test_a_search_scores_draws_and_references_and_tests_its_choice(searched):
    out, output = searched
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
    assert known == {("alpaca_eval", 0, 1), ("gsm8k", 0, 0)}, "only gsm8k needs a form of answer"
    [[identity]] = rows(out, "SELECT identity FROM search")
    assert "sobol_generator" not in identity, "searches of earlier versions resume"
    assert "report.html" in output and (results_file(out).parent / "average_merging_mixup_seed_0_report").is_dir()
    answered = rows(out, "SELECT DISTINCT task, part, example FROM answers")
    for task in ("gsm8k", "alpaca_eval"):
        validation, test = ({row[2] for row in answered if row[:2] == (task, part)} for part in ("validation", "test"))
        assert len(validation) == len(test) == 8 and not validation & test


def test_a_killed_search_resumes_without_loss_or_repetition(searched, tmp_path):
    process = start(tmp_path)
    wait_for_answers(tmp_path, 30, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    stored = rows(tmp_path, "SELECT * FROM answers")
    search(tmp_path)
    assert rows(tmp_path, "SELECT * FROM answers")[: len(stored)] == stored
    assert rows(tmp_path) == rows(searched[0]) and rows(tmp_path, ANSWERS) == rows(searched[0], ANSWERS)
    assert len(rows(tmp_path, "SELECT * FROM starts WHERE seconds > 0")) == 2
    before = rows(tmp_path, "SELECT * FROM answers")
    assert "engine start" not in search(tmp_path).stdout, "nothing is left to do"
    assert rows(tmp_path, "SELECT * FROM answers") == before


def test_a_second_process_is_one_line_and_may_still_report(searched, tmp_path):
    out, path = searched[0], results_file(searched[0])
    with locked(path):
        second = search(out, expect=2)
        report = search(out, "--report", "--export", tmp_path / "results.csv")
    assert second.stderr.count("\n") == 1 and f"{path}: another process" in second.stderr
    assert "draw 1" in report.stdout and "engine start" not in report.stdout
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 1 + len(rows(out))
    by_file = run_here(search_mixup.main, ["--results", path, "--report"])
    assert by_file.stdout.splitlines()[1:] == report.stdout.splitlines()[2:], "without naming models"


def test_only_the_better_half_gets_the_last_rung(tmp_path):
    search(tmp_path, "--num_draws", 3, "--rungs", 2, "--num_test", 2)
    reached = {row[0]: row[5] for row in rows(tmp_path) if row[0].startswith("draw") and row[4] == "validation"}
    assert sorted(reached.values()) == [2, 8, 8]


def test_an_optimiser_proposes_different_ratios(tmp_path):
    search(tmp_path, "--draw_by", "optimise", "--num_draws", 3, "--num_validation", 2, "--num_test", 2)
    ratios = {row[0]: row[1] for row in rows(tmp_path) if row[0].startswith("draw")}
    assert len(ratios) == 3 and len(set(ratios.values())) == 3


def test_a_sobol_search_of_the_earlier_generator_is_one_line(tmp_path):
    options = ("--draw_by", "sobol", "--num_validation", 2, "--num_test", 2)
    search(tmp_path, *options)
    assert "engine start" not in search(tmp_path, *options).stdout, "nothing is left to do"
    path = results_file(tmp_path)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE search SET identity = json_remove(identity, '$.sobol_generator')")
    connection.close()
    line = search(tmp_path, *options, expect=2).stderr
    assert f'{path}: holds another search: sobol_generator ("scipy" there, "torch" here); name another file' in line
    assert line.count("\n") == 1
    assert "draw 1" in search(tmp_path, *options, "--report").stdout


def test_programs_run_if_the_user_allows_it(tmp_path):
    """The model for code is not merged here, so its programs are wrong."""
    options = ("--tasks", "human_eval", "--allow_code_execution", "--num_draws", 1, "--num_validation", 2)
    search(tmp_path, *options, "--num_test", 2)
    assert {row[3] for row in rows(tmp_path)} == {"human_eval"}


@pytest.mark.alone
def test_ray_gives_the_same_table_after_kills_of_an_actor_and_the_driver(searched, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed")
    options = ("--ray", "local", "--ray_engines", 2)
    process = start(tmp_path, *options)
    children = psutil.Process(process.pid)
    wait_for_answers(tmp_path, 16, process)
    actors = [child for child in children.children(recursive=True) if "ray::_Actor" in " ".join(child.cmdline())]
    actors[0].kill()
    wait_for_answers(tmp_path, 48, process)
    everything = children.children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for left in psutil.wait_procs(everything, timeout=3)[1]:  # Ray's agents outlive the driver
        left.kill()
    stored = rows(tmp_path, "SELECT * FROM answers")
    again = start(tmp_path, *options)
    errors = again.communicate()[1]
    assert again.returncode == 0, errors
    assert rows(tmp_path, "SELECT * FROM answers")[: len(stored)] == stored
    assert rows(tmp_path) == rows(searched[0]) and rows(tmp_path, ANSWERS) == rows(searched[0], ANSWERS)


BAD = [
    (["--scaling_coefficient", "1", "0.5"], "--scaling_coefficient has no effect"),
    (["--rungs", "4", "--draw_by", "optimise"], "--rungs"),
    (["--backend", "vllm", "--engine_dtype", "auto"], "--engine_dtype"),
    (["--results", "."], "--results .: is a folder"),
    (["--ray_engines", "2"], "--ray_engines"),
    (["--ray", "local", "--ray_engines", "4096"], "--ray_engines 4096"),
    (["--distributed_executor_backend", "ray"], "--distributed_executor_backend"),
    (["--draw_by", "grid", "--alpha", "0.3"], "--alpha"),
    (["--alpha", "0"], "--alpha"),
    (["--report"], "no such file"),
]


@pytest.mark.parametrize(("options", "named"), BAD, ids=[" ".join(options) for options, _ in BAD])
def test_options_that_do_not_fit_are_one_line_and_leave_nothing(options, named, tmp_path):
    done = search(tmp_path / "out", *options, expect=2)
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ") and named in done.stderr
    assert not (tmp_path / "out").exists()


def search_models(out: Path, *options: object, expect: int = 0) -> subprocess.CompletedProcess:
    """Search with `--models`, whose names are not the paper's."""
    common = ["--pretrained_model", ZOO / "base", "--models", f"chat={ZOO / 'instruct'}", f"sums={ZOO / 'math'}"]
    common += ["--data_dir", ZOO / "data", "--output_dir", out, "--backend", "transformers"]
    common += ["--num_draws", 2, "--num_validation", 3, "--num_test", 3]
    done = run_here(search_mixup.main, [str(word) for word in (*common, *options)])
    assert done.returncode == expect, done.stderr
    return done


def values(out: Path, columns: str) -> dict[str, tuple]:
    """These columns of the results, by candidate."""
    (path,) = out.glob("save_mixup_searches/chat_sums/*.sqlite")
    connection = sqlite3.connect(path)
    try:
        return {name: row for name, *row in connection.execute(f"SELECT candidate, {columns} FROM results")}
    finally:
        connection.close()


def test_a_method_without_ratios_is_searched_over_its_options(tmp_path):
    options = ("--merging_method_name", "magmax", "--scaling_coefficient", "0.5:1.5", "--tasks", "gsm8k")
    done = search_models(tmp_path, *options)
    found = values(tmp_path, "method, scaling_coefficient, ratio_chat")
    assert set(found) == {"plain choice", "average", "chat alone", "sums alone", "draw 0", "draw 1"}
    assert found["plain choice"] == ["magmax", 1.0, None] and found["average"] == ["average_merging", None, 0.5]
    assert all(found[name][0] == "magmax" and 0.5 < found[name][1] < 1.5 for name in ("draw 0", "draw 1"))
    (line,) = [line for line in done.stdout.splitlines() if "merge_llms_instruct_math_code.py" in line]
    assert f"--models chat={ZOO / 'instruct'} sums={ZOO / 'math'}" in line
    assert "--merging_method_name magmax --scaling_coefficient " in line
    assert "chosen minus plain choice, in points" in done.stdout
    assert (tmp_path / "save_mixup_searches" / "chat_sums" / "magmax_mixup_seed_0_report" / "scores.svg").is_file()
    assert "engine start" not in search_models(tmp_path, *options).stdout, "nothing is left to do"


def test_another_method_with_ratios_is_searched(tmp_path):
    options = ("--merging_method_name", "nuslerp", "--no-task_vectors", "--tasks", "gsm8k", "alpaca_eval")
    search_models(tmp_path, *options)
    found = values(tmp_path, "method, ratio_chat, task_vectors")
    assert set(found) == {"equal ratios", "chat alone", "sums alone", "draw 0", "draw 1"}
    assert found["equal ratios"] == ["nuslerp", 0.5, 0] and found["draw 0"][1] != 0.5


def test_without_mixup_a_coefficient_is_searched_alone(tmp_path):
    options = ("--merging_method_name", "task_arithmetic", "--scaling_coefficient", 1, 0.5, "--tasks", "gsm8k")
    search_models(tmp_path, *options, "--without_mixup")
    found = values(tmp_path, "scaling_coefficient, ratio_chat")
    assert {name: found[name] for name in found if name.startswith(("draw", "plain"))} == {
        "plain choice": [1.0, None],
        "draw 0": [1.0, None],
        "draw 1": [0.5, None],
    }


def test_a_range_of_one_model_is_searched_reported_and_repeated(tmp_path):
    options = ("--merging_method_name", "task_arithmetic", "--without_mixup", "--tasks", "gsm8k")
    options += ("--scaling_coefficient", "sums=0.5:1.5", "chat=0.25")
    done = search_models(tmp_path, *options)
    found = {name: json.loads(weight) for name, [weight] in values(tmp_path, "weight").items() if weight}
    assert found.pop("plain choice") == [0.25, 1.0]
    assert len({tuple(weight) for weight in found.values()}) == 2
    assert all(chat == 0.25 and 0.5 <= sums <= 1.5 for chat, sums in found.values())
    assert "weight of sums" in done.stdout
    (saved,) = (line for line in done.stdout.splitlines() if "--merge_only" in line)
    command = [*shlex.split(saved)[2:], "--output_dir", str(tmp_path / "merged")]
    assert run_here(main_job.main, command).returncode == 0
    record = json.loads(next((tmp_path / "merged").rglob("merge_record.json")).read_text())
    assert record["parameters"]["options"]["weight"] in found.values()
    assert "engine start" not in search_models(tmp_path, *options).stdout, "nothing is left to do"


def test_ranges_of_one_model_with_the_same_middle_have_separate_results(tmp_path):
    options = ("--merging_method_name", "task_arithmetic", "--without_mixup", "--tasks", "gsm8k")
    for values in ("0.5:1.5", "0.8:1.2"):
        search_models(tmp_path, *options, "--scaling_coefficient", "chat=0.25", f"sums={values}")
    search_models(tmp_path, *options, "--scaling_coefficient", "0.5:1.5")
    names = sorted(path.name for path in tmp_path.rglob("*.sqlite"))
    assert ["_values_" in name for name in names].count(True) == 2 and len(names) == 3, names


def test_a_search_under_its_name_of_an_earlier_version_resumes(tmp_path):
    options = ("--merging_method_name", "task_arithmetic", "--without_mixup", "--tasks", "gsm8k")
    options += ("--scaling_coefficient", "chat=0.25", "sums=0.5:1.5")
    search_models(tmp_path, *options)
    (results,) = tmp_path.rglob("*.sqlite")
    earlier = results.rename(results.with_name(results.name.partition("_values_")[0] + results.suffix))
    assert "engine start" not in search_models(tmp_path, *options).stdout, "nothing is left to do"
    assert list(tmp_path.rglob("*.sqlite")) == [earlier]


def test_without_mixup_one_merge_is_scored(tmp_path):
    done = search_models(tmp_path, "--merging_method_name", "model_stock", "--tasks", "gsm8k", "--without_mixup")
    assert "draw 0 scores the same as plain choice" in done.stdout
    assert [name for name in values(tmp_path, "method") if name.startswith("draw")] == ["draw 0"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--merging_method_name magmax --tasks gsm8k", "magmax: takes no ratios to search"),
        ("--merging_method_name linear --alpha 0.5 --without_mixup", "--alpha has no effect with --without_mixup"),
        ("--merging_method_name linear --without_mixup --draw_by sobol", "there is one merge, and nothing to draw"),
        ("--merging_method_name magmax --alpha 0.5 --tasks gsm8k", "--alpha has no effect on magmax"),
        ("--merging_method_name slerp --t 0.2:1.5 --tasks gsm8k", "--t 0.2:1.5: give a number between 0 and 1"),
        ("--merging_method_name slerp --tasks gsm8k", "slerp: give --t"),
        ("--merging_method_name nuslerp --t 0.2 0.5 --tasks gsm8k", "--t has no effect"),
        ("--merging_method_name linear --weight 0.2 0.5 --tasks gsm8k", "--weight has no effect with M3's ratios"),
        ("--merging_method_name linear --weight chat=0.2:0.5 --tasks gsm8k", "--weight has no effect with M3's ratios"),
        ("--merging_method_name linear --without_mixup --weight you=0:1", "--weight you=0:1: no model named you"),
        ("--merging_method_name linear --without_mixup --weight chat=1:0", "--weight chat=1:0: a range is low:high"),
        ("--merging_method_name linear --without_mixup --weight chat=0:1 chat=2:3", "numbers or one range"),
        ("--merging_method_name magmax --scaling_coefficient chat=0:1", "chat=0:1: takes one number for all models"),
        ("--merging_method_name magmax --weight chat=0:1 --tasks gsm8k", "--weight chat=0:1 has no effect on magmax"),
        ("--merging_method_name average_merging", "--tasks: give the tasks to run; none belong to a model named chat"),
    ],
)
def test_options_of_other_methods_that_do_not_fit_are_one_line(options, named, tmp_path):
    done = search_models(tmp_path / "out", *options.split(), expect=2)
    assert done.stderr.count("\n") == 1 and named in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def test_the_points_of_a_ratio_over_the_layers_are_searched_and_repeated(tmp_path):
    done = search(tmp_path, "--ratio_points", 3, "--draw_by", "sobol")
    with SearchStore(results_file(tmp_path)) as store:
        candidates = {one.name: one for one in store.candidates()}
    assert candidates["plain choice"].parameters.mixup.by_layer == (0.5, 0.5, 0.5)
    drawn = [candidates[f"draw {number}"].parameters.mixup.by_layer for number in range(2)]
    assert len(set(drawn)) == 2 and all(0 <= ratio <= 1 for points in drawn for ratio in points)
    (saved,) = (line for line in done.stdout.splitlines() if "--merge_only" in line)
    chosen = next(points for points in drawn if f"--ratio_by_layer {' '.join(map(str, points))}" in saved)
    command = [*shlex.split(saved)[2:], "--output_dir", str(tmp_path / "merged")]
    assert run_here(main_job.main, command).returncode == 0
    record = next((tmp_path / "merged").rglob("merge_record.json"))
    assert tuple(json.loads(record.read_text())["parameters"]["mixup"]["by_layer"]) == chosen


def test_a_grid_of_points_has_even_steps(tmp_path):
    options = search_mixup.build_parser().parse_args(words(tmp_path, "--ratio_points", 2, "--draw_by", "grid"))
    options.num_draws = 9
    space = search_mixup.search_space(options, ["instruct", "math"])
    points = [values.numbers for name, values in space.options.items() if name in space.points]
    assert points == [(0.0, 0.5, 1.0)] * 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--ratio_points", 1], "--ratio_points 1: give 2 or more"),
        (["--ratio_points", 3, "--alpha", 0.5], "has no Beta and searches the ratio itself; remove --alpha"),
        (["--ratio_points", 3, "--without_mixup"], "remove --without_mixup"),
        (["--ratio_points", 3, "--merging_method_name", "slerp"], "needs two models and a method that takes ratios"),
    ],
)
def test_points_without_effect_are_refused(options, reason, tmp_path):
    assert reason in search(tmp_path, *options, expect=2).stderr
