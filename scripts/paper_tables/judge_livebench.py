"""LiveBench's own judgments of instruction following and coding."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.paper_tables.commands import Setting, data_dir_of
from scripts.paper_tables.evaluator_results import livebench_judgments
from scripts.paper_tables.guard import run_guarded
from scripts.paper_tables.to_judge import ToJudge, run_evaluator

CATEGORIES = ("instruction_following", "coding")
RUNS_PROGRAMS = "coding"
RELEASE = "2024-11-25"  # the paper's
SECONDS = 7200


def judge_livebench(category: str, items: Sequence[ToJudge], setting: Setting) -> dict[str, str]:
    """Judge all answers of a category at once; returns why they were not, by key. Raises UserError where the judge
    fails."""
    folder = livebench_folder()
    if folder is None:
        note = "LiveBench is not installed, and LIVEBENCH_DIR does not name its folder `livebench`"
        return {item.key: note for item in items}
    place = folder / "data" / "live_bench" / category
    files = [file for item in items for file in item.files]
    for answers in {file.parents[2] for file in files}:
        shutil.copytree(answers, place, dirs_exist_ok=True)
    words = [sys.executable, "gen_ground_truth_judgment.py", "--bench-name", f"live_bench/{category}"]
    words += ["--livebench-release-option", RELEASE]
    if data_dir_of(setting) is not None:
        words += ["--question-source", "jsonl"]
    if category == RUNS_PROGRAMS:
        run_guarded(words, SECONDS, folder)
    else:
        run_evaluator(words, folder)
    for file in files:
        judged = place / file.parents[1].name / "model_judgment" / "ground_truth_judgment.jsonl"
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
