"""Every score below a results' folder, whatever produced it, with what made it; and what is missing, and why."""

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from scripts.paper_tables.cell import MAIN_JOB, all_states, cell_of_text
from scripts.paper_tables.commands import ROOT
from scripts.paper_tables.evaluate import NOTES
from scripts.paper_tables.evaluator_results import (
    Judged,
    command_to_type,
    read_alpaca_eval,
    read_livebench,
    read_programs,
)
from scripts.paper_tables.jobs import DONE
from scripts.paper_tables.merge_facts import about_merge, about_words, logged_command
from scripts.paper_tables.names import DATA_SETS, METHODS
from scripts.paper_tables.score import OK, Score, percent_interval, share_interval
from scripts.paper_tables.verdicts import answered_ids, read_verdicts, rule_for_one_answer
from utils.errors import UserError
from utils.intervals import drop_rate_interval
from utils.json_files import read_json_object
from utils.output_places import SINGLE_MODEL

MISSING, UNREADABLE, CONFLICT = "missing", "unreadable", "two results"


class Found:
    """What lies below a results' folder beside the scores: cells on record, evaluators' notes, merge records."""

    def __init__(self, results_dir: Path):
        self.results_dir = results_dir

    @cached_property
    def states(self) -> list[dict[str, Any]]:
        return all_states(self.results_dir)

    @cached_property
    def notes(self) -> dict[str, str]:
        path = self.results_dir / NOTES
        return read_json_object(path, "remove it") if path.is_file() else {}

    def state_of(self, root: Path, tasks: str, name: str, script: str, words: Iterable[str]) -> dict[str, Any]:
        """The cell on record that ran `script`, with all of `words`, on a merge; empty where there is none."""
        for state in self.states:
            if state.get("root") is None or (ROOT / state["root"]).resolve() != root.resolve():
                continue
            of_cell = cell_of_text(state["cell"]).words
            if (state["tasks_name"], state["name"]) == (tasks, name) and {script, *words} <= set(of_cell):
                return state
        return {}


def collect_scores(results_dir: Path) -> list[Score]:
    """All scores, in the order of models, methods and data sets; a line for what is missing or in doubt.

    Raises UserError where there is neither a result nor a cell."""
    if not results_dir.is_dir():
        raise UserError(f"{results_dir}: no such folder; run a script of scripts/paper first")
    found = Found(results_dir)
    scores = [*_task_scores(found), *_attack_scores(found)]
    scores += _missing_scores(found, scores)
    if not scores:
        raise UserError(f"{results_dir} holds no results; run a script of scripts/paper first")
    return sorted(mark_conflicts(scores), key=_order)


def mark_conflicts(scores: Iterable[Score]) -> list[Score]:
    """The scores, with those marked and their values taken away that claim the same place with different values. Of
    copies that agree the first stays."""
    by_place: dict[tuple, list[Score]] = {}
    for score in scores:
        by_place.setdefault((*score.line, score.draw), []).append(score)
    kept = []
    for rivals in by_place.values():
        values = {(rival.value, rival.examples) for rival in rivals if rival.status == OK}
        if len(values) < 2:
            kept.append(next((rival for rival in rivals if rival.status == OK), rivals[0]))
            continue
        told = "; ".join(f"{rival.value:.1f} in {rival.result_file}" for rival in rivals if rival.status == OK)
        kept += [replace(rival, **_NO_VALUE, status=CONFLICT, note=f"two results: {told}") for rival in rivals]
    return kept


_NO_VALUE: dict[str, Any] = {"value": None, "low": None, "high": None, "values": None, "right": None}


def _task_scores(found: Found) -> Iterator[Score]:
    """The scores of the files in save_scores."""
    for path in sorted(found.results_dir.rglob("save_scores/*/**/*.json")):
        if path.name.startswith("."):
            continue
        root = path.parents[len(path.parts) - path.parts.index("save_scores") - 1]
        tasks, *name = path.relative_to(root / "save_scores").parts
        name = "/".join(name).removesuffix(".json")  # it holds dots of its own
        about = about_merge(root, tasks, name)
        try:
            of_tasks = json.loads(path.read_text(encoding="utf-8"))
            if not all(isinstance(score, dict) for score in of_tasks.values()):
                raise ValueError("it does not hold scores by task")
        except (ValueError, AttributeError) as error:
            note = f"{path} is not whole ({error}); remove it and run its command again"
            yield _without_value(about, "", "", UNREADABLE, note, result_file=str(path))
            continue
        for task, record in of_tasks.items():
            yield _task_score(found, root, tasks, name, task, record, {**about, "result_file": str(path)})


def _task_score(
    found: Found, root: Path, tasks: str, name: str, task: str, record: Mapping[str, Any], about: Mapping[str, Any]
) -> Score:
    dataset = DATA_SETS.get(task, (task, 0))[0]
    script = "ood_robust_inference.py" if task in ("instruction_following", "coding", "typos") else MAIN_JOB
    state = found.state_of(root, tasks, name, script, (task,) if script != MAIN_JOB else ())
    about = {**about, **_commands(state, root, tasks, name, script), "backend": record.get("backend", "")}
    about |= {"evaluator_command": record.get("evaluator_command") or "", "examples": record.get("examples")}
    fingerprint = (record.get("identity") or {}).get("weights_fingerprint")
    if about["fingerprint"] and fingerprint not in (None, about["fingerprint"]):
        note = f"{about['result_file']} holds results of other weights than {about['merge_record']} tells of"
        return _without_value(about, dataset, "", UNREADABLE, note)
    try:
        judged, ids, note = _judge(task, record, about["command"])
    except (UserError, KeyError, TypeError, IndexError, OSError) as error:
        return _without_value(about, dataset, "", UNREADABLE, str(error))
    if judged is None:
        files = [Path(file) for file in record["files"]]
        command = command_to_type(task, files, record["evaluator_command"])
        about["evaluator_command"] = command
        note = found.notes.get(record["files"][0], "not judged yet: its command stands in scores.csv")
        return _without_value(about, dataset, "", MISSING, note)
    if judged.command is not None:
        about["evaluator_command"] = judged.command
    if judged.examples != record.get("examples"):
        note = f"{judged.examples} of {record.get('examples')} answers were judged"
        return _without_value(about, dataset, judged.metric, UNREADABLE, note)
    values = None
    if judged.values is None:
        low, high = share_interval(judged.score, judged.examples)
    else:
        low, high = percent_interval(judged.values)
        values = tuple(zip(ids, judged.values, strict=True))
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


def _judge(task: str, record: Mapping[str, Any], command: str) -> tuple[Judged | None, list[int | str], str]:
    """What is known of a task's answers, which `command` asked for; the ids of the examples, and a remark."""
    files = [Path(file) for file in record.get("files", ())]
    raw = Path(record["raw_generations"])
    if rule_for_one_answer(task) is not None:
        accuracy = float(record["accuracy"])
        try:
            if not command:
                raise UserError("the command is not on record, and with it where the data set is")
            verdicts = read_verdicts(task, raw, _data_dir(command))
        except (UserError, OSError) as error:
            return Judged("accuracy", accuracy, record["examples"]), [], f"no paired comparison: {error}"
        if abs(sum(verdicts.values()) - accuracy * len(verdicts)) > 1e-6:
            raise UserError(f"{raw}: its completions do not have the accuracy on record; run the command again")
        values = tuple(float(right) for right in verdicts.values())
        return Judged("accuracy", accuracy, record["examples"], values), list(verdicts), ""
    if task == "alpaca_eval":
        judged = read_alpaca_eval(files[0])
    elif task in ("human_eval", "mbpp"):
        judged = read_programs(task, files[0])
    else:
        judged = read_livebench(files)
        if judged is not None:
            ids = [json.loads(line)["question_id"] for file in files for line in file.read_text().splitlines()]
            return judged, ids, ""
    return judged, sorted(answered_ids(raw), key=lambda name: (isinstance(name, str), name)), ""


def _attack_scores(found: Found) -> Iterator[Score]:
    """The performance drop rates of the files in save_adversarial_results."""
    by_model = {}
    for record in sorted(found.results_dir.rglob("merge_records/**/*.json")):
        root = record.parents[len(record.parts) - record.parts.index("merge_records") - 1]
        tasks, *name = record.relative_to(root / "merge_records").parts
        name = "/".join(name).removesuffix(".json")
        by_model[root, f"{tasks}_{name.replace('/', '_')}"] = (tasks, name)
    for path in sorted(found.results_dir.rglob("save_adversarial_results/*/*/*.json")):
        root, dataset, attack = path.parents[3], path.parents[1].name, path.stem
        tasks, name = by_model.get((root, path.parent.name), (SINGLE_MODEL, path.parent.name))
        about = {**about_merge(root, tasks, name), "result_file": str(path), "evaluator_command": ""}
        state = found.state_of(root, tasks, name, f"promptbench/{dataset}.py", (attack,))
        about |= _commands(state, root, tasks, name, f"promptbench/{dataset}.py")
        shown = DATA_SETS.get(dataset, (dataset, 0))[0]
        try:
            report = read_json_object(path, "remove it and run its command again")
            yield _attack_score(report, about, shown, attack)
        except (UserError, KeyError) as error:
            yield _without_value(about, shown, attack, UNREADABLE, f"{path} is not whole ({error})")


def _attack_score(report: Mapping[str, Any], about: Mapping[str, Any], dataset: str, attack: str) -> Score:
    examples = report["settings"]["number_of_samples"]
    accuracies = (
        f"accuracy {100 * report['clean_accuracy']:.1f} clean, {100 * report['attacked_accuracy']:.1f} attacked"
    )
    about = {**about, "backend": report["settings"]["backend"], "examples": examples}
    if about["fingerprint"] not in ("", report["settings"]["weights_fingerprint"]):
        note = f"{about['result_file']} is of other weights than {about['merge_record']} tells of"
        return _without_value(about, dataset, attack, UNREADABLE, note)
    if report["performance_drop_rate"] is None:
        note = f"undefined, for the clean accuracy is 0; {accuracies}"
        return _without_value(about, dataset, attack, MISSING, note, metric="PDR")
    right = (tuple(report["clean_right"]), tuple(report["attacked_right"]))
    low, high = drop_rate_interval(right[:1], right[1:])
    return Score(
        **about,
        dataset=dataset,
        attack=attack,
        metric="PDR",
        value=100 * report["performance_drop_rate"],
        low=100 * low,
        high=100 * high,
        status=OK,
        note=accuracies,
        right=right,
    )


def _missing_scores(found: Found, scores: Iterable[Score]) -> Iterator[Score]:
    """A line for every result that a cell on record should have left and has not."""
    there = {(score.line, score.draw) for score in scores}
    for state in found.states:
        if state.get("root") is None:
            continue
        cell = cell_of_text(state["cell"])
        root = ROOT / state["root"]
        about = about_merge(root, state["tasks_name"], state["name"])
        if not about["fingerprint"]:
            about |= about_words(cell.merge)
        about |= _commands(state, root, state["tasks_name"], state["name"], "")
        status = state["status"]
        if status == DONE:
            reason = "the cell ran, and this result is not there any more; run its script again"
        else:
            reason = state.get("reason") or {"running": "interrupted, or running now"}.get(status, "not run yet")
        for task, attack in [(task, attack) for task in cell.tasks for attack in cell.attacks or [""]]:
            score = _without_value(about, DATA_SETS[task][0], attack, MISSING, f"{status}: {reason}")
            if (score.line, score.draw) not in there:
                yield score


def _commands(state: Mapping[str, Any], root: Path, tasks: str, name: str, script: str) -> dict[str, str]:
    """The commands that made a result: a cell's on record, or what a merge typed by hand left in its log."""
    commands = state.get("commands") or []
    if commands:
        return {"command": commands[-1], "merge_command": commands[0]}
    logged = logged_command(root, tasks, name)
    return {"command": logged if script == MAIN_JOB else "", "merge_command": logged}


def _data_dir(command: str) -> Path | None:
    """Where a command, typed at the project's root, looked for the sets' files first."""
    words = shlex.split(command)
    return ROOT / words[words.index("--data_dir") + 1] if "--data_dir" in words else None


def _without_value(about: Mapping[str, Any], dataset: str, attack: str, status: str, note: str, **more: Any) -> Score:
    empty = dict.fromkeys(("examples", "backend", "command", "evaluator_command", "merge_command", "result_file"), "")
    fields = {**empty, "examples": None, "metric": "", **about, **more}
    return Score(**{**fields, **_NO_VALUE, "dataset": dataset, "attack": attack, "status": status, "note": note})


def _order(score: Score) -> tuple:
    names = [name for name, _ in DATA_SETS.values()]
    methods = list(METHODS.values())
    return (
        score.models.count("&"),
        score.models,
        methods.index(score.method) if score.method in methods else len(methods),
        score.method,
        score.variant,
        score.dare,
        score.mixup,
        score.alpha or 0,
        names.index(score.dataset) if score.dataset in names else len(names),
        score.attack,
        -1 if score.seed is None else score.seed,
    )
