"""From the record of a task in save_scores to its score."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from inference_llms.evaluators.results import Verdicts
from inference_llms.tasks import LIVEBENCH_TASKS, TASKS
from scripts.paper_tables.cell import LIVEBENCH, MAIN_JOB
from scripts.paper_tables.found import Found, check_weights
from scripts.paper_tables.names import DATA_SETS
from scripts.paper_tables.score import (
    MISSING,
    OK,
    UNREADABLE,
    Score,
    percent_interval,
    share_interval,
    without_value,
)
from scripts.paper_tables.stored_results import (
    ScoresFile,
    check_record,
    own_completions,
    own_evaluator_command,
    own_files,
    read_completions,
    read_health,
    read_task_records,
    scores_files,
)
from scripts.paper_tables.verdicts import Asked, asked_by, read_verdicts, rule_for_one_answer
from utils.errors import UserError

AGAIN = "run its command again"


def task_scores(found: Found) -> Iterator[Score]:
    """The scores of the files in save_scores: what is wrong with one takes nothing from another."""
    for scores in scores_files(found.results_dir):
        about = {**found.about(scores.places), "result_file": str(scores.path)}
        try:
            records = read_task_records(scores.path)
        except UserError as error:
            yield without_value(about, "", "", UNREADABLE, str(error))
            continue
        for task, record in records.items():
            yield _task_score(found, scores, task, record, about)


def _task_score(found: Found, scores: ScoresFile, task: str, record: Mapping[str, Any], known: dict[str, Any]) -> Score:
    dataset = DATA_SETS.get(task, (task, 0))[0]
    script = LIVEBENCH if task in LIVEBENCH_TASKS else MAIN_JOB
    about = {**known, **found.commands(scores.places, script, task)}
    try:
        check_record(scores.path, task, record, scores.places.root)
        about["command"] = record.get("command") or about["command"]
        about |= {"backend": str(record.get("backend", "")), "examples": record["examples"]}
        of_record = record.get("evaluator_command") or ""
        about["evaluator_command"] = own_evaluator_command(of_record, record, scores.places.root)
        about["health"] = read_health(scores.path, record.get("health"), AGAIN)
        check_weights(about, (record.get("identity") or {}).get("weights_fingerprint"))
        judged, note = _judge(scores, task, record, about["command"])
        if judged is not None and judged.examples != record["examples"]:
            about["metric"] = judged.metric
            raise UserError(f"{judged.examples} of {record['examples']} answers were judged")
    except UserError as error:
        return without_value(about, dataset, "", UNREADABLE, str(error))
    if judged is None:
        evaluator = TASKS[task].evaluator if task in TASKS else None
        if evaluator is None:
            note = "it names an evaluator whose results are not read here: its command stands in scores.csv"
            return without_value(about, dataset, "", MISSING, note)
        files = own_files(record, scores.places.root)
        about["evaluator_command"] = evaluator.full_command(files, about["evaluator_command"])
        return without_value(about, dataset, "", MISSING, found.why_not_judged(files[0]))
    if judged.command is not None:
        about["evaluator_command"] = own_evaluator_command(judged.command, record, scores.places.root)
    if judged.values is None:
        (low, high), values = share_interval(judged.score, judged.examples), None
    else:
        low, high = percent_interval(judged.values)
        values = tuple(zip(judged.ids, judged.values, strict=True))
    return Score(
        **about,
        dataset=dataset,
        attack="",
        metric=judged.metric,
        value=100 * judged.score,
        low=low,
        high=high,
        status=OK,
        note=note,
        values=values,
    )


def _judge(scores: ScoresFile, task: str, record: Mapping[str, Any], command: str) -> tuple[Verdicts | None, str]:
    """What is known of a task's answers, which `command` asked for, and a remark.

    Raises UserError if something of it is damaged or does not agree with the rest."""
    examples = record["examples"]
    own = own_completions(record, task, scores.places)
    asked = asked_by(record, command)
    is_replay = own is None or asked.replayed is not None
    raw = own
    if own is None or (is_replay and not own.is_file()):
        raw = Path(record["raw_generations"])  # of a replay, which has no completions of its own
    completions = read_completions(raw, is_replay) if raw.is_file() else None
    if completions is not None and (len(completions) < examples or (len(completions) > examples and not is_replay)):
        raise UserError(f"{raw} holds {len(completions)} completions, and the score is of {examples}; {AGAIN}")
    if task in TASKS and TASKS[task].evaluator is not None:
        files = own_files(record, scores.places.root)
        judged = TASKS[task].evaluator.read(files)
        lacking = [file for file in files if not file.is_file()]
        if lacking:
            raise UserError(f"{lacking[0]}: no such file; {AGAIN}")
        return judged, ""
    if "accuracy" not in record and record.get("evaluator_command"):
        return None, ""
    accuracy = record.get("accuracy")
    if not isinstance(accuracy, int | float) or not 0 <= accuracy <= 1:
        raise UserError(f"{scores.path}: the accuracy of {task} is {accuracy!r}, no number from 0 to 1; {AGAIN}")
    verdicts, note = _verdicts(task, completions, asked, raw)
    if verdicts is None:
        return Verdicts("accuracy", accuracy, examples), f"no paired comparison: {note}"
    if len(verdicts) != examples:
        raise UserError(
            f"{raw} holds completions of {len(verdicts)} examples of the data set at hand, and the score is of "
            f"{examples}; {AGAIN}, with the data set it was made from"
        )
    if abs(sum(verdicts.values()) - accuracy * examples) > 1e-6:
        raise UserError(f"{raw}: its completions do not have the accuracy on record; {AGAIN}")
    return Verdicts("accuracy", accuracy, examples, tuple(map(float, verdicts.values())), tuple(verdicts)), ""


def _verdicts(
    task: str, completions: Mapping[int | str, str] | None, asked: Asked, raw: Path
) -> tuple[dict[int | str, bool] | None, str]:
    """Which examples were answered rightly; None, and why, where what that takes is not at hand."""
    if rule_for_one_answer(task) is None:
        return None, "the task has no `is_right`, which tells how one answer is judged"
    if completions is None:
        return None, f"{raw}: no such file"
    try:
        return read_verdicts(task, completions, asked), ""
    except (UserError, OSError) as error:  # the data set is not there
        return None, str(error)
