"""The definition of MergeBench is complete."""

import importlib.util
from pathlib import Path

import pytest

from inference_llms.tasks import TASKS
from scripts.mergebench.plan import MERGE, BenchSetting, merged_model, steps_of_base
from scripts.mergebench.suite import (
    BASES,
    DOMAINS,
    EVALPLUS,
    FULL,
    GENERAL,
    LM_EVAL,
    SAFETY_EVAL,
    TINY,
    published_values,
)
from tests.inference_llms.support import ROOT


@pytest.mark.parametrize("suite", [FULL, TINY], ids=["full", "tiny"])
def test_every_domain_has_data_sets_and_every_base_its_specialists(suite):
    assert suite.domains
    assert suite.sets_of(GENERAL)
    for base in suite.bases:
        assert set(base.specialists) == set(suite.domains)
        assert len({base.hub_id, *base.specialists.values()}) == 1 + len(suite.domains)
    assert len({one.name for one in suite.data_sets}) == len(suite.data_sets)


def test_the_full_suite_has_the_papers_models_and_domains():
    assert FULL.domains == list(DOMAINS)
    assert len(BASES) == 8
    models = [model for base in BASES for model in base.specialists.values()]
    assert len(set(models)) == 40
    assert all(model.startswith("MergeBench/") for model in models)
    assert {base.hub_id.split("/")[0] for base in BASES} == {"meta-llama", "google"}


def test_every_task_exists_in_its_harness():
    own = [task for one in FULL.data_sets if one.harness == EVALPLUS for task in one.tasks]
    assert set(own) <= set(TASKS)
    assert {one.harness for one in FULL.data_sets} == {LM_EVAL, EVALPLUS, SAFETY_EVAL}
    if importlib.util.find_spec("lm_eval") is None:
        pytest.skip('run `pip install -e ".[lm-eval]"` to look up the harness\'s tasks')
    from lm_eval.tasks import TaskManager

    known = TaskManager().task_index
    assert [task for one in FULL.data_sets if one.harness == LM_EVAL for task in one.tasks if task not in known] == []


def test_tasks_of_the_tiny_suite_have_files():
    tasks = [task for one in TINY.data_sets if one.harness == LM_EVAL for task in one.tasks]
    folder = ROOT / TINY.task_options["lm_eval_include_path"]
    assert sorted(path.stem for path in folder.glob("*.yaml")) == sorted(tasks)


@pytest.mark.parametrize("suite", [FULL, TINY], ids=["full", "tiny"])
def test_methods_have_valid_options_and_separate_folders(suite):
    setting = BenchSetting(suite, suite is TINY, Path("results"), "auto")
    for base in suite.bases:
        folders = [merged_model(base, method, setting) for method in suite.methods]
        assert len(set(folders)) == len(suite.methods)


@pytest.mark.parametrize("safety_eval", [None, Path("safety-eval")])
def test_each_model_of_a_base_is_downloaded_once(safety_eval):
    setting = BenchSetting(FULL, False, Path("results"), "auto", safety_eval=safety_eval)
    for base in FULL.bases:
        downloaded = sum(step.downloaded for step in steps_of_base(base, setting))
        assert downloaded == base.stored_bytes + 5 * base.bytes


def test_merges_of_a_base_in_float32_are_in_bfloat16():
    setting = BenchSetting(FULL, False, Path("results"), "auto")
    for base in FULL.bases:
        commands = [step.text for step in steps_of_base(base, setting) if step.kind == MERGE]
        assert all(("--dtype bfloat16" in text) == (base.name in ("gemma-2-2b", "gemma-2-9b")) for text in commands)


def test_published_values_are_of_known_bases_and_have_a_source():
    for (base, method), values in published_values().items():
        assert base in [one.name for one in BASES]
        assert method
        assert all(0 <= one.value <= 100 and one.metric and one.source for one in values.values())
