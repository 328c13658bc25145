"""The demo: gains of the committed fine-tunes, its steps, its table and its log."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from inference_llms.engines.open_engine import open_engine
from inference_llms.model_folder import file_hashes, model_fingerprint, output_places, weights_fingerprint
from inference_llms.run_tasks import ModelSource, ModelTasks, load_task_examples, run_tasks
from inference_llms.tasks import find_task
from scripts import run_demo
from scripts.run_demo import DATA, TASKS, TASKS_OF_ROLE, ZOO, Step
from utils.errors import UserError


def scores_of(folder: Path, out: Path) -> dict[str, float]:
    source = ModelSource(
        "transformers",
        str(folder),
        model_fingerprint(file_hashes(folder)),
        weights_fingerprint(folder, file_hashes(folder)),
        lambda: open_engine("transformers", folder, 1, 1),
    )
    work = [ModelTasks(load_task_examples([find_task(name) for name in TASKS], DATA, 0, None), source)]
    scores = run_tasks(work, output_places(folder, out))
    return {task: run_demo.task_score(task, scores[task]) for task in TASKS}


@pytest.fixture(scope="module")
def scores(tmp_path_factory) -> dict[str, dict[str, float]]:
    """The score of each tiny model on all five tasks, by the demo's rules."""
    out = tmp_path_factory.mktemp("out")
    return {name: scores_of(ZOO / name, out) for name in ("base", *TASKS_OF_ROLE)}


@pytest.mark.parametrize("role", TASKS_OF_ROLE)
def test_a_fine_tune_gains_20_points_on_its_own_tasks_and_none_on_the_others(scores, role):
    for task in TASKS:
        gain = scores[role][task] - scores["base"][task]
        if task in TASKS_OF_ROLE[role]:
            assert gain >= 0.20, (task, gain)
        else:
            assert gain < 0, (task, gain)


def test_the_table_has_a_row_for_each_model_and_merge_of_the_readme(tmp_path):
    steps = run_demo.scored_steps(tmp_path)
    names = [step.name for step in steps]
    assert names[:4] == ["base", "instruct", "math", "code"] and len(set(names)) == len(names)
    for roles in ("instruct + math", "instruct + code", "math + code", "instruct + math + code"):
        assert f"{roles}: average" in names and f"{roles}: average, M3" in names
    for step in steps:
        merged = [role for role in TASKS_OF_ROLE if f"--merge_{role}" in step.command]
        assert merged == (list(step.roles) if len(step.roles) > 1 else [])


def test_gains_kept_is_that_of_the_model_that_keeps_least():
    of_model = {"base": 0.25, "math": 0.75, "code": 0.75, "math + code": 0.5}
    scores = {name: dict.fromkeys(TASKS, score) for name, score in of_model.items()}
    merge = Step("math + code", ("math", "code"), ())
    assert run_demo.gains_kept(merge, scores) == "50%"
    scores["math + code"]["mbpp"] = 0.25
    assert run_demo.gains_kept(merge, scores) == "25%"
    assert run_demo.gains_kept(Step("math", ("math",), ()), scores) == ""


def test_the_demo_runs_livebench_on_the_papers_pairs_and_attacks_both_prompts(tmp_path):
    *livebench, sst2, cola = run_demo.robustness_steps(tmp_path)
    merges = {step.name for step in run_demo.scored_steps(tmp_path)}
    for step, task in zip(livebench, ("instruction_following", "coding", "typos"), strict=True):
        assert step.command[step.command.index("--evaluate_task") + 1] == task
        model = Path(step.command[step.command.index("--load_model_path") + 1])
        assert model == tmp_path / "save_merge_models" / "_".join(step.roles) / step.roles[0] / "average_merging"
        assert f"{' + '.join(step.roles)}: average" in merges
    assert [step.command[1] for step in (sst2, cola)] == ["promptbench/sst2.py", "promptbench/cola.py"]


def test_a_step_is_one_line_and_its_command_and_output_are_in_the_log(tmp_path, capsys):
    step = Step("says hello", (), [sys.executable, "-c", "print('hello')"])
    assert list(run_demo.run_steps([step], tmp_path / "demo.log")) == [["hello"]]
    assert re.fullmatch(r"\[ 1/1\] says hello, \d+ s\n", capsys.readouterr().out)
    assert (tmp_path / "demo.log").read_text() == f"$ {shlex.join(step.command)}\nhello\n\n"


def test_a_failed_step_is_named_with_its_last_line_and_the_log(tmp_path):
    step = Step("fails", (), [sys.executable, "-c", "raise SystemExit('no such model')"])
    with pytest.raises(UserError, match=r"^fails: no such model; the log is .*demo\.log$"):
        list(run_demo.run_steps([step], tmp_path / "demo.log"))
