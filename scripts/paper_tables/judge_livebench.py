"""LiveBench's own judgments of instruction following and coding."""

import importlib.util
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from inference_llms.livebench import JUDGE, judge_words, judged_release, question_files
from scripts.guard import TORCH_MEMORY_BYTES, run_guarded
from scripts.paper_tables.evaluator_results import command_file, livebench_judgments, livebench_result, read_livebench
from scripts.paper_tables.judged_files import keep_hash_lines
from scripts.paper_tables.to_judge import ToJudge, each, hashes_to_judge, run_evaluator
from utils.errors import UserError
from utils.json_files import read_json_lines
from utils.whole_files import write_whole

CATEGORIES = ("instruction_following", "coding")
RUNS_PROGRAMS = "coding"
SECONDS = 7200


def judge_livebench(category: str, items: Sequence[ToJudge]) -> dict[str, str]:
    """Judge the answers of each model; returns why some were not, by key."""
    folder = livebench_folder()
    if folder is None:
        note = "LiveBench is not installed, and LIVEBENCH_DIR does not name its folder `livebench`"
    elif not (folder / JUDGE).is_file():
        note = f"{folder} holds no {JUDGE}; let LIVEBENCH_DIR name LiveBench's folder `livebench`"
    else:
        return each(items, lambda item: _judge(category, item, folder))
    return {item.key: note for item in items}


def livebench_folder() -> Path | None:
    """The folder of LiveBench's scripts, where it is installed."""
    named = os.environ.get("LIVEBENCH_DIR")
    if named is not None:
        return Path(named).absolute()
    found = importlib.util.find_spec("livebench")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations)))


def _judge(category: str, item: ToJudge, folder: Path) -> None:
    """Have LiveBench judge one model, of whose files alone it is told."""
    place = folder / "data" / "live_bench" / category
    if item.data_dir is not None and not item.data_dir.is_dir():
        raise UserError(f"{item.data_dir}, where the run's questions were, is not there; put it back")
    questions = question_files(category, item.data_dir, item.files)
    hashes = hashes_to_judge(item)
    model_id = item.files[0].name.removesuffix(".jsonl")
    words = judge_words(category, model_id, judged_release(item.command), bool(questions))
    with _placed(questions, place):
        for answers in item.files:
            target = place / answers.parents[1].name / "model_answer" / answers.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(answers, target)
        if category == RUNS_PROGRAMS:
            _run_without_network(words, folder, asks_the_hub=not questions)
        else:
            run_evaluator([sys.executable, *words], folder)
    for answers in item.files:
        _take_judgments(place / answers.parents[1].name, answers, model_id)
    keep_hash_lines(livebench_result(item.files), hashes)
    if read_livebench(item.files) is None:
        raise UserError(f"{JUDGE} ended well and left no judgment of {item.files[0]}")
    write_whole(command_file(livebench_result(item.files)), shlex.join(["python", *words]) + "\n")


def _run_without_network(words: Sequence[str], folder: Path, asks_the_hub: bool) -> None:
    try:
        run_guarded([sys.executable, *words], SECONDS, folder, TORCH_MEMORY_BYTES)
    except UserError as error:
        hint = " (it runs without network, so `datasets` must have livebench/coding in its cache)"
        raise UserError(f"{error}{hint if asks_the_hub else ''}") from error


@contextmanager
def _placed(questions: Mapping[str, Path], place: Path) -> Iterator[None]:
    """Hold the questions of a run's own files in LiveBench's folder, where it looks for them.

    Raises UserError where others are there."""
    added = []
    try:
        for task, ours in questions.items():
            theirs = place / task / ours.name
            if not theirs.exists():
                theirs.parent.mkdir(parents=True, exist_ok=True)
                added.append(theirs)
                shutil.copyfile(ours, theirs)
            elif theirs.read_bytes() != ours.read_bytes():
                raise UserError(f"{theirs} holds other questions than {ours}, which were asked; move it away")
        yield
    finally:
        for path in added:
            path.unlink()


def _take_judgments(task_folder: Path, answers: Path, model_id: str) -> None:
    """Put LiveBench's judgments of one model among those of our other models."""
    target = livebench_judgments(answers)
    judged = task_folder / "model_judgment" / target.name
    found = read_json_lines(judged, "see what LiveBench left there")
    before = read_json_lines(target, "remove it") if target.is_file() else []
    rows = [row for row in before if row["model"].lower() != model_id.lower()]
    rows += [row for row in found if row["model"].lower() == model_id.lower()]
    write_whole(target, "".join(json.dumps(row) + "\n" for row in rows))
