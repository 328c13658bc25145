"""Collect every score below a results folder, with its commands, and every missing score, with the reason."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from inference_llms.data_sets import read_rows
from inference_llms.evaluators.results import Verdicts
from inference_llms.prompt_format import PAPER
from inference_llms.raw_generations import stored_rows
from inference_llms.tasks import LIVEBENCH_TASKS, LM_EVAL, TASKS
from scripts.paper_tables.cell_runs import ROOT
from scripts.paper_tables.cells import ALONE, LIVEBENCH, MAIN_JOB
from scripts.paper_tables.names import DATA_SETS, METHODS, dataset_name
from scripts.paper_tables.results import (
    RERUN,
    ResultsFolder,
    TaskRecord,
    check_same_weights,
    read_health,
    read_prompt_format,
    remake_command,
    task_records,
    why_missing,
)
from scripts.paper_tables.scores import (
    CONFLICT,
    MISSING,
    NO_VALUE,
    OK,
    PDR,
    UNREADABLE,
    Score,
    percent_interval,
    share_interval,
)
from utils.errors import UserError
from utils.intervals import drop_rate_interval
from utils.json_files import check_shape, read_json_lines, read_json_object
from utils.output_places import SINGLE_MODEL, OutputPlaces


def collect_scores(results_dir: Path) -> list[Score]:
    """All scores, including missing, broken and conflicting ones, in the order of models, methods and data sets.
    Searches are not among them (`method_scores.collect_methods`).

    Raises UserError if there is neither a result nor a cell."""
    if not results_dir.is_dir():
        raise UserError(f"{results_dir}: no such folder; run a script of scripts/paper first")
    results = ResultsFolder(results_dir)
    scores = [*task_scores(results), *attack_scores(results)]
    scores += missing_scores(results, scores)
    for path, reason in results.broken_cells.items():
        scores.append(Score(variant=path.stem, result_file=str(path), status=UNREADABLE, note=reason))
    if not scores and not any(state.cell.is_search for state in results.cells.values()):
        raise UserError(f"{results_dir} holds no results; run a script of scripts/paper first")
    return sorted(mark_conflicts(scores), key=_order)


def task_scores(results: ResultsFolder) -> Iterator[Score]:
    """The scores of the files in save_scores. A broken file or record affects no other."""
    for record in task_records(results.folder):
        about = {**results.about(record.places), "result_file": str(record.path)}
        if not record.task:
            yield Score(**about, status=UNREADABLE, note=record.fault)
        else:
            yield _task_score(results, record, about)


def _task_score(results: ResultsFolder, record: TaskRecord, known: Mapping[str, Any]) -> Score:
    task, content = record.task, record.content
    script = LIVEBENCH if task in LIVEBENCH_TASKS else ALONE if record.places.tasks == SINGLE_MODEL else MAIN_JOB
    about = {**known, **results.commands(record.places, script, task), "dataset": dataset_name(task)}
    if record.fault:
        return Score(**about, status=UNREADABLE, note=record.fault)
    about["command"] = content.get("command") or about["command"]
    about["merge_command"] = about["merge_command"] or _merge_command(about, script)
    about |= {"backend": str(content.get("backend", "")), "examples": content["examples"]}
    about["tokens"] = content.get("tokens_per_answer")
    about["metrics"] = "; ".join(f"{name} {value:.6g}" for name, value in record.metrics.items())
    about["completions_file"] = str(record.completions_file() or content.get("raw_generations", ""))
    about["evaluator_command"] = record.relocated(content.get("evaluator_command") or "")
    try:
        about["prompts"] = str(record.prompt_format)
        about["health"] = read_health(record.path, content.get("health"))
        check_same_weights(about, (content.get("identity") or {}).get("weights_fingerprint"))
        verdicts, note = _verdicts(record, about["command"])
        if verdicts is not None and verdicts.examples != content["examples"]:
            about["metric"] = verdicts.metric
            raise UserError(f"{verdicts.examples} of {content['examples']} answers were judged")
    except UserError as error:
        return Score(**about, status=UNREADABLE, note=str(error))
    if verdicts is None:
        evaluator = TASKS[task].evaluator if task in TASKS else None
        if evaluator is None:
            note = "its evaluator is unknown here: its command is in scores.csv"
            return Score(**about, status=MISSING, note=note)
        about["evaluator_command"] = evaluator.full_command(record.files, about["evaluator_command"])
        return Score(**about, status=MISSING, note=results.why_not_scored(record.files[0]))
    if verdicts.command is not None:
        about["evaluator_command"] = record.relocated(verdicts.command)
    if not _is_share(record):
        return Score(**about, metric=verdicts.metric, value=verdicts.score, is_share=False, note=about["metrics"])
    if verdicts.values is None:
        (low, high), values = share_interval(verdicts.score, verdicts.examples), None
    else:
        low, high = percent_interval(verdicts.values)
        values = tuple(zip(verdicts.ids, verdicts.values, strict=True))
    found = {"metric": verdicts.metric, "value": 100 * verdicts.score, "low": low, "high": high, "values": values}
    return Score(**about, **found, note=note)


def _merge_command(about: Mapping[str, Any], script: str) -> str:
    """The command of a merge without a cell."""
    return about["command"] if script == MAIN_JOB else remake_command(about)


def _verdicts(record: TaskRecord, command: str) -> tuple[Verdicts | None, str]:
    """The verdicts on a task's answers, None without an evaluator's result, and a remark.

    Raises UserError for damaged or contradictory files."""
    content, options = record.content, record.options(command)
    examples, raw = content["examples"], record.completions_file()
    is_replay = raw is None or options.get("backend") == "replay"
    if raw is None or (is_replay and not raw.is_file()):
        raw = Path(content["raw_generations"])  # a replay scores another run's completions
    completions = _completions(raw, is_replay) if raw.is_file() else None
    if completions is not None and (len(completions) < examples or (len(completions) > examples and not is_replay)):
        raise UserError(f"{raw} holds {len(completions)} completions, but the score is over {examples}; {RERUN}")
    if record.task in TASKS and TASKS[record.task].evaluator is not None:
        verdicts = TASKS[record.task].evaluator.read(record.files)
        missing = [file for file in record.files if not file.is_file()]
        if missing:
            raise UserError(f"{missing[0]}: no such file; {RERUN}")
        return verdicts, "" if verdicts is None else verdicts.note
    if "accuracy" not in content and content.get("evaluator_command"):
        return None, ""
    if not _is_share(record):
        return Verdicts(*next(iter(record.metrics.items())), examples), ""
    accuracy = content.get("accuracy")
    if not isinstance(accuracy, int | float) or not 0 <= accuracy <= 1:
        raise UserError(
            f"{record.path}: the accuracy of {record.task} is {accuracy!r}, not a number from 0 to 1; {RERUN}"
        )
    right, note = _right_answers(record, completions, options, raw)
    if right is None:
        return Verdicts("accuracy", accuracy, examples), f"no paired comparison: {note}"
    if len(right) != examples:
        raise UserError(
            f"{raw} holds completions of {len(right)} examples of the data set, but the score is over {examples}; "
            f"{RERUN}, with the data set it was made from"
        )
    if abs(sum(right.values()) - accuracy * examples) > 1e-6:
        raise UserError(f"{raw}: its completions do not give the recorded accuracy; {RERUN}")
    return Verdicts("accuracy", accuracy, examples, tuple(map(float, right.values())), tuple(right)), ""


def _is_share(record: TaskRecord) -> bool:
    """Whether the score is a share of the answers; those of the harness's perplexity tasks are not right or wrong."""
    return not (record.task.startswith(LM_EVAL) and "accuracy" not in record.content and record.metrics)


def _completions(path: Path, is_replay: bool) -> dict[int | str, str]:
    """Raw completions by id; those of a replay need no prompts. Raises UserError for a broken line, unless a kill cut
    off the last one."""
    if is_replay:
        rows = read_rows(path, {"completion": str}, may_end_torn=True)
        return {row.fields.get("id"): row.fields["completion"] for row in rows}
    return {row["id"]: row["completion"] for _, row in stored_rows(path)}


def _right_answers(
    record: TaskRecord, completions: Mapping[int | str, str] | None, options: Mapping[str, Any], raw: Path
) -> tuple[dict[int | str, bool] | None, str]:
    """Whether the answer to each scored example is right, by id; or None, and why this is unknown."""
    if record.task.startswith(LM_EVAL):
        return {row["id"]: row["right"] for row in read_json_lines(record.files[0], RERUN)}, ""
    is_right = TASKS[record.task].is_right if record.task in TASKS else None
    if is_right is None:
        return None, "the task has no `is_right`, which judges one answer"
    if completions is None:
        return None, f"{raw}: no such file"
    # The record's folder, because the command may have been run anywhere.
    data_dir = record.content.get("data_dir", options.get("data_dir"))
    folder = None if data_dir is None else ROOT / data_dir
    try:
        rows = _rows_by_id(record.task, folder, options.get("livebench_release"))
    except (UserError, OSError) as error:  # the data set is missing
        return None, str(error)
    ids = list(rows)
    if options.get("backend") == "replay":  # other runs score every completion that exists
        ids = ids[options.get("start_index", 0) : options.get("end_index")]
    answer = record.prompt_format.answer
    return {name: is_right(answer(completions[name]), rows[name]) for name in ids if name in completions}, ""


@cache
def _rows_by_id(task: str, data_dir: Path | None, release: str | None) -> dict[int | str, Mapping[str, Any]]:
    return {example.id: example.row for example in TASKS[task].load_examples(data_dir, release)}


@dataclass(frozen=True)
class AttackSettingsShape:
    """The fields of an attack's settings that are read."""

    backend: str
    weights_fingerprint: str
    number_of_samples: int


@dataclass(frozen=True)
class AttackResultShape:
    """The fields of an attack's result that are read."""

    settings: AttackSettingsShape
    clean_accuracy: float
    attacked_accuracy: float
    performance_drop_rate: float | None
    clean_right: list[bool]
    attacked_right: list[bool]
    command: str | None = None


def attack_scores(results: ResultsFolder) -> Iterator[Score]:
    """The performance drop rates of the files in save_adversarial_results. A broken file affects no other."""
    for path in sorted(results.folder.rglob("save_adversarial_results/*/*/*.json")):
        if not path.name.startswith("."):
            yield _attack_score(results, path)


def _attack_score(results: ResultsFolder, path: Path) -> Score:
    root, task, model, attack = path.parents[3], path.parents[1].name, path.parent.name, path.stem
    places = results.merges.get((root, model), OutputPlaces(root, SINGLE_MODEL, model))
    script = f"promptbench/{task}.py"
    about = {**results.about(places), **results.commands(places, script, task, attack)}
    about |= {"metric": PDR, "dataset": dataset_name(task), "attack": attack, "result_file": str(path)}
    about["merge_command"] = about["merge_command"] or _merge_command(about, script)
    try:
        report = read_json_object(path, RERUN)
        _check_attack_result(path, report)
        settings = report["settings"]
        about["prompts"] = str(read_prompt_format(path, settings))
        about |= {"backend": settings["backend"], "examples": settings["number_of_samples"]}
        about["command"] = report.get("command") or about["command"]
        about["health"] = read_health(path, report.get("attacked_health"))
        check_same_weights(about, settings["weights_fingerprint"])
    except UserError as error:
        return Score(**about, status=UNREADABLE, note=str(error))
    clean, attacked = (100 * report[name] for name in ("clean_accuracy", "attacked_accuracy"))
    note = f"accuracy {clean:.1f} clean, {attacked:.1f} attacked"
    if report["performance_drop_rate"] is None:
        return Score(**about, status=MISSING, note="no answer to the clean prompt is right, so there is no drop rate")
    right = (tuple(report["clean_right"]), tuple(report["attacked_right"]))
    low, high = drop_rate_interval(right[:1], right[1:])
    found = {"value": 100 * report["performance_drop_rate"], "low": 100 * low, "high": 100 * high, "right": right}
    return Score(**about, **found, note=note)


def _check_attack_result(path: Path, report: Mapping[str, Any]) -> None:
    """Raise UserError unless a result has the fields that a score needs, and they agree."""
    check_shape(f"{path} is damaged", report, AttackResultShape, RERUN)
    samples = report["settings"]["number_of_samples"]
    shares = []
    for name in ("clean", "attacked"):
        right = report[f"{name}_right"]
        if samples < 1 or len(right) != samples or not abs(sum(right) / samples - report[f"{name}_accuracy"]) <= 1e-6:
            raise UserError(f"{path}: its {name} accuracy does not match its {samples} samples; {RERUN}")
        shares.append(sum(right) / samples)
    clean, attacked = shares
    rate = report["performance_drop_rate"]
    if (rate is None) != (clean == 0) or (rate is not None and not abs(rate - (clean - attacked) / clean) <= 1e-6):
        raise UserError(f"{path}: its drop rate does not match its accuracies; {RERUN}")


def missing_scores(results: ResultsFolder, scores: Iterable[Score]) -> Iterator[Score]:
    """A score without a value for every result that a recorded cell lacks."""
    existing = {(replace(score, prompts=PAPER).line, score.draw) for score in scores}  # cells do not know the prompts
    broken_files = {score.result_file: score.note for score in scores if not score.dataset}
    for path, state in results.cells.items():
        if state.cell.is_search:  # in the table of methods
            continue
        places, attacks = state.places(results.folder), state.cell.attacks
        about_merge, reason = results.about(places), why_missing(path, state)
        if not attacks:
            reason = broken_files.get(str(places.scores()), reason)
        for task, attack in [(task, attack) for task in state.cell.tasks for attack in attacks or [""]]:
            about = {**about_merge, **results.commands(places, state.cell.script, task, attack)}
            score = Score(**about, dataset=dataset_name(task), attack=attack, status=MISSING, note=reason)
            if (score.line, score.draw) not in existing:
                yield score


def mark_conflicts(scores: Iterable[Score]) -> list[Score]:
    """The scores without duplicates. Scores of one draw that differ are marked as a conflict and lose their values. Of
    equal ones the first stays, and so does every result without a value."""
    by_draw: dict[tuple, list[Score]] = {}
    for score in scores:
        by_draw.setdefault((*score.line, score.draw), []).append(score)
    kept = []
    for duplicates in by_draw.values():
        valid = [score for score in duplicates if score.status == OK]
        if len({(score.value, score.examples) for score in valid}) > 1:
            note = "; ".join(f"{score.value:.1f} in {score.result_file}" for score in valid)
            valid = [replace(score, **NO_VALUE, status=CONFLICT, note=note) for score in valid]
        else:
            valid = valid[:1]
        lacking = [score for score in duplicates if score.status != OK]
        kept += [*valid, *(score for score in lacking if score.result_file)] or lacking[:1]
    return kept


def _order(score: Score) -> tuple:
    names, methods = [name for name, _ in DATA_SETS.values()], list(METHODS.values())
    return (
        score.models.count("&"),
        score.models,
        methods.index(score.method) if score.method in methods else len(methods),
        score.method,
        score.variant,
        score.prompts,
        score.dare,
        score.mixup,
        score.alpha or 0,
        names.index(score.dataset) if score.dataset in names else len(names),
        score.attack,
        -1 if score.seed is None else score.seed,
    )
