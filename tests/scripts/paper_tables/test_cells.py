"""The cells of the paper's tables, and their records."""

import json
from collections import Counter

import pytest

from model_merging_methods.methods import METHODS as ALL_METHODS
from scripts.paper_tables.cells import (
    METHODS,
    PAIRS,
    STATES,
    TABLES,
    THREE,
    Cell,
    cells_of_tables,
    merge_of_options,
    options_of_text,
    read_state,
)
from scripts.paper_tables.names import METHODS as METHOD_NAMES
from scripts.paper_tables.tuning import BASELINE, left_out, tuned_option
from tests.scripts.paper_tables.support import MERGE
from utils.errors import UserError

SEEDS = [0, 1, 2]
OLD_STATE = {
    "tables": ["adversarial"],
    "commands": ["python merge.py", "python promptbench/sst2.py --attack_method deepwordbug stresstest"],
    "cell": "--merge_instruct --merge_code --merging_method_name average_merging --mixup --alpha 0.5 --seed 2 -- "
    "promptbench/sst2.py --model_path MERGED --attack_method deepwordbug stresstest",
    "status": "done",
    "root": "paper_results",
    "tasks_name": "instruct_code",
    "name": "average_merging",
    "inputs": {"commands": ["python merge.py", "python attack.py"], "hashes": {"code model": "c64c"}},
}


def test_performance_merges_each_group_by_each_method_without_m3_and_with_draws():
    merges = Counter()
    cells = cells_of_tables(["performance"], SEEDS)
    for cell in cells:
        if cell.is_alone:
            continue
        roles, parameters = merge_of_options(cell.merge)
        merges[tuple(roles), parameters.method, parameters.mixup is not None] += 1
    groups = [(models, method) for models in (*PAIRS, THREE) for method in METHODS]
    assert merges == {(*group, drawn): 3 if drawn else 1 for group in groups for drawn in (False, True)}
    alone = [cell.tasks for cell in cells if cell.is_alone]
    assert alone == [["alpaca_eval"], ["gsm8k", "MATH"], ["human_eval", "mbpp"]]


def test_tables_share_cells():
    cells = cells_of_tables([name for name in TABLES if name != "methods"], SEEDS)
    assert len({cell.name for cell in cells}) == len(cells) == 141
    plain = [cell for cell in cells if "dare" in cell.tables and "use_weight_rescale" not in cell.merge]
    assert len(plain) == 14 and all("performance" in cell.tables for cell in plain)
    assert len(cells_of_tables(["alpha"], [7])) == 8


def test_pairs_meet_the_sets_that_the_paper_gives_them():
    found = {(*merge_of_options(cell.merge)[0], *cell.tasks) for cell in cells_of_tables(["ood"], SEEDS)}
    assert found == {
        ("math", "code", "instruction_following"),
        ("instruct", "math", "coding"),
        ("instruct", "code", "typos"),
    }
    cells = cells_of_tables(["adversarial"], SEEDS)
    attacks = Counter((*cell.tasks, attack) for cell in cells for attack in cell.attacks)
    names = ("deepwordbug", "bertattack", "stresstest")
    assert attacks == {(task, name): 12 for task in ("sst2", "cola") for name in names}


def test_every_method_is_compared_once_or_left_out_with_a_reason():
    found = Counter()
    for cell in cells_of_tables(["methods"], SEEDS):
        roles, parameters = merge_of_options(cell.merge)
        found[parameters.method, len(roles)] += 1
        assert cell.is_search and cell.options["without_mixup"]
    methods = [method for method, number in found if (method, number) != (BASELINE, 2)]
    assert sorted([*methods, *left_out()]) == sorted(ALL_METHODS)
    assert set(found.values()) == {1} and {(BASELINE, 2), (BASELINE, 3), ("slerp", 2), ("linear", 3)} <= set(found)
    assert left_out()["arcee_fusion"] == "for other numbers of models"


def test_every_tuned_method_has_five_values_with_its_default_first():
    for name, method in ALL_METHODS.items():
        if tuned := tuned_option(method):
            option, values = tuned
            assert len(set(values)) == 5 and method.options[option].default in (None, values[0]), name
            for value in values:
                method.options[option].check(value)


def test_methods_of_the_tables_have_names():
    assert set(METHODS) <= set(METHOD_NAMES)


def test_names_are_those_of_earlier_versions():
    """So that a rerun finds the states of results that exist."""
    assert Cell((), MERGE).name == "merge_instruct_merge_code_merging_method_name_average_merging_7953de55"
    first = next(cell for cell in cells_of_tables(["ood"], [0]) if cell.tasks == ["typos"] and "mixup" in cell.merge)
    assert first.name.endswith("_seed_0_ood_robust_inference.py_load_model__d6419890")


def test_a_state_of_an_earlier_version_is_read(tmp_path):
    path = tmp_path / STATES / "old.json"
    path.parent.mkdir()
    path.write_text(json.dumps(OLD_STATE))
    state = read_state(path)
    assert state.cell.merge == {**MERGE, "mixup": True, "alpha": 0.5, "seed": 2}
    assert (state.cell.tasks, state.cell.attacks) == (["sst2"], ["deepwordbug", "stresstest"])
    assert (state.runs, state.hashes) == (OLD_STATE["inputs"]["commands"], {"code model": "c64c"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"status": "done"}', "cell: field required"),
        ('{"sta', "is not JSON"),
        ("[]", "is not a JSON object"),
        (json.dumps({**OLD_STATE, "cell": "--merge_instruct"}), "is not a complete record of a cell"),
        (json.dumps({**OLD_STATE, "cell": "--merge_instruct -- promptbench/sst2.py"}), "is not a complete record"),
        (json.dumps({**OLD_STATE, "seconds": "3"}), "seconds: input should be"),
    ],
)
def test_a_broken_state_is_an_error_with_a_remedy(tmp_path, text, message):
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_state(path)
    assert str(error.value).startswith(str(path)) and "remove it and rerun its script" in str(error.value)


def test_options_recorded_as_text_are_read():
    text = "python ood_robust_inference.py --evaluate_task typos --livebench_release 2024-11-25 --start_index 3"
    assert options_of_text(text) == {"evaluate_task": "typos", "livebench_release": "2024-11-25", "start_index": 3}
