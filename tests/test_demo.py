"""The demo's claims, on the committed tiny models: what fine-tuning gains, and what a merge keeps of it."""

from pathlib import Path

import pytest

from inference_llms.engines.engine import open_engine
from inference_llms.model_folder import file_hashes, model_fingerprint, output_places, weights_fingerprint
from inference_llms.run_tasks import ModelSource, ModelTasks, load_task_examples, run_tasks
from model_merging_methods.merge_models import merge_models
from model_merging_methods.merge_parameters import MergeParameters
from model_merging_methods.merge_record import MergeRequest
from scripts import run_demo
from scripts.run_demo import DATA, TASKS, TASKS_OF_ROLE, ZOO, Row


def scores_of(folder: Path, out: Path) -> dict[str, float]:
    source = ModelSource(
        "transformers",
        str(folder),
        model_fingerprint(file_hashes(folder)),
        weights_fingerprint(folder, file_hashes(folder)),
        lambda: open_engine("transformers", folder, 1, 1),
    )
    work = [ModelTasks(load_task_examples(TASKS, DATA, 0, None), source)]
    scores = run_tasks(work, output_places(folder, out))
    return {task: run_demo.task_score(task, scores[task]) for task in TASKS}


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def scores(out) -> dict[str, dict[str, float]]:
    """The score of each tiny model on all five tasks, by the demo's own rules."""
    return {name: scores_of(ZOO / name, out) for name in ("base", *TASKS_OF_ROLE)}


@pytest.mark.parametrize("role", TASKS_OF_ROLE)
def test_a_fine_tune_gains_20_points_on_its_own_tasks_and_none_on_the_others(scores, role):
    for task in TASKS:
        gain = scores[role][task] - scores["base"][task]
        if task in TASKS_OF_ROLE[role]:
            assert gain >= 0.20, (task, gain)
        else:
            assert gain < 0, (task, gain)


def test_an_average_keeps_half_of_both_gains(scores, out):
    folder = out / "average" / "math"
    parameters = MergeParameters("average_merging")
    request = MergeRequest(ZOO / "base", {role: ZOO / role for role in ("math", "code")}, parameters)
    merge_models(request, {"math": folder})
    merged = scores_of(folder, out)
    for role in ("math", "code"):
        gain, kept = (
            sum(of_model[task] - scores["base"][task] for task in TASKS_OF_ROLE[role])
            for of_model in (scores[role], merged)
        )
        assert kept >= 0.5 * gain, (role, kept, gain)


def test_the_table_has_a_row_for_each_model_and_merge_that_the_readme_speaks_of(tmp_path):
    table = run_demo.rows(tmp_path)
    names = [row.name for row in table]
    assert names[:4] == ["base", "instruct", "math", "code"] and len(set(names)) == len(names)
    for roles in ("instruct + math", "instruct + code", "math + code", "instruct + math + code"):
        assert f"{roles}: average" in names and f"{roles}: average, M3" in names
    for row in table:
        assert [role for role in TASKS_OF_ROLE if f"--merge_{role}" in row.command] == (
            list(row.roles) if len(row.roles) > 1 else []
        )


def test_gains_kept_is_that_of_the_model_that_keeps_least():
    of_model = {"base": 0.25, "math": 0.75, "code": 0.75, "math + code": 0.5}
    scores = {name: dict.fromkeys(TASKS, score) for name, score in of_model.items()}
    merge = Row("math + code", ("math", "code"), ())
    assert run_demo.gains_kept(merge, scores) == "50%"
    scores["math + code"]["mbpp"] = 0.25
    assert run_demo.gains_kept(merge, scores) == "25%"
    assert run_demo.gains_kept(Row("math", ("math",), ()), scores) == ""


def test_the_demo_asks_livebenchs_tasks_of_the_papers_pairs_and_attacks_both_prompts(tmp_path):
    commands = run_demo.robustness_commands(tmp_path)
    asked = {command[command.index("--evaluate_task") + 1]: command for command in commands[:3]}
    assert asked.keys() == {"instruction_following", "coding", "typos"}
    merges = {row.name for row in run_demo.rows(tmp_path)}
    for task, roles in run_demo.ROLES_OF_LIVEBENCH_TASK.items():
        model = Path(asked[task][asked[task].index("--load_model_path") + 1])
        assert model == tmp_path / "save_merge_models" / "_".join(roles) / roles[0] / "average_merging"
        assert f"{' + '.join(roles)}: average" in merges
    assert [command[1] for command in commands[3:]] == ["promptbench/sst2.py", "promptbench/cola.py"]
