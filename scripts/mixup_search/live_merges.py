"""One engine that runs one merge after another without a restart."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory

from inference_llms.engines.engine import Completion, Engine
from inference_llms.engines.open_engine import open_engine
from inference_llms.evaluators.guard import check_guard
from inference_llms.prompt_format import PAPER_PROMPTS, PromptFormat
from inference_llms.task import Example, Task
from inference_llms.tasks import find_task
from model_merging_methods.merge_parameters import MergeParameters
from model_merging_methods.merge_request import MergeRequest
from scripts.mixup_search.search_space import Candidate
from scripts.mixup_search.store import Answer
from utils.content_hashes import FileStates, check_unchanged, file_states
from utils.errors import UserError
from utils.progress import progress_of

# Seconds after which answers are handed over, so that a kill loses few of them.
_HANDOVER_SECONDS = 20.0


@dataclass(frozen=True)
class Job:
    """Examples, by task, that a candidate has not answered yet."""

    candidate: Candidate
    examples: Mapping[str, Sequence[Example]]


@dataclass(frozen=True)
class Answered:
    """Some answers of a job, all to one task. `seconds`: time spent on completions. `is_last`: the job is done.
    `start_seconds`: time of a start of the engine since the answers before; 0 without one."""

    candidate: Candidate
    task: str
    answers: Sequence[Answer]
    seconds: float
    is_last: bool
    start_seconds: float


@dataclass(frozen=True)
class EngineSetup:
    """The models to merge, by role in model order, and the engine that runs them.

    `role_of_task`: the model whose tokenizer a task uses. `states`: the states of the models' files when the search
    began; None if that was on another machine. The fields from `tensor_parallel_size` on are command-line options.
    """

    pretrained: Path
    finetuned: Mapping[str, Path]
    role_of_task: Mapping[str, str]
    backend: str
    states: FileStates | None = None
    prompt_format: PromptFormat = PAPER_PROMPTS
    max_tokens: int | None = None
    lm_eval_include_path: Path | None = None
    tensor_parallel_size: int | None = 1
    pipeline_parallel_size: int = 1
    engine_dtype: str = "float32"
    distributed_executor_backend: str | None = None

    def task(self, name: str) -> Task:
        """A task with the search's prompts and limit of tokens."""
        return find_task(name, self.lm_eval_include_path).in_format(self.prompt_format).capped(self.max_tokens)


ENGINE_OPTIONS = [field.name for field in fields(EngineSetup)[8:]]


class LiveMerges:
    """One engine in this process. It starts with the first job; `close` ends it."""

    number = 1

    def __init__(self, setup: EngineSetup):
        self._setup = setup
        self._opened = ExitStack()
        self._engine: Engine | None = None
        self._loaded: tuple[MergeParameters | None, str | None] = (None, None)  # the merge, the role of the tokenizer
        self._start_seconds = self._proof_seconds = self._loading_seconds = self._completing_seconds = 0.0
        self._replacements = 0
        self._new_start = 0.0  # seconds, not handed over yet

    def spent(self) -> str:
        """A line on the time spent; empty if no engine was needed."""
        if self._replacements == 0:
            return ""
        return (
            f"engine start {self._start_seconds:.1f} s, {self._replacements} replacements of its weights "
            f"{self._loading_seconds / self._replacements:.2f} s each, its check {self._proof_seconds:.1f} s, "
            f"completions {self._completing_seconds:.1f} s"
        )

    def run(self, jobs: Iterator[Job]) -> Iterator[Answered]:
        for job in jobs:
            yield from self.answer(job)

    def answer(self, job: Job) -> Iterator[Answered]:
        """Complete and judge all examples of a job."""
        names = list(job.examples)
        for name, examples in job.examples.items():
            self.load(job.candidate.parameters, self._setup.role_of_task[name])
            task, completed = self._setup.task(name), list[tuple[Example, Completion, float]]()
            began, left = time.monotonic(), len(examples)
            for example, text in self._complete(f"{job.candidate.name}, {name}", task, examples):
                completed.append((example, text, time.time()))
                left -= 1
                seconds = time.monotonic() - began
                if left == 0 or seconds > _HANDOVER_SECONDS:
                    self._completing_seconds += seconds
                    is_last = left == 0 and name == names[-1]
                    start, self._new_start = self._new_start, 0.0
                    yield Answered(job.candidate, name, _judge(task, completed), seconds, is_last, start)
                    completed, began = [], time.monotonic()

    def load(self, parameters: MergeParameters, role: str) -> None:
        """Put this merge and the tokenizer of `role` into the engine. Raises UserError for models that cannot be
        merged or run."""
        engine = self._engine or self._start(parameters)
        loaded, loaded_role = self._loaded
        if loaded != parameters:
            started = time.monotonic()
            self._loaded = (None, loaded_role)
            engine.replace_weights(self._merges.weights(parameters))
            check_unchanged(self._states, file_states(self._states))
            self._loading_seconds += time.monotonic() - started
            self._replacements += 1
        if loaded_role != role:
            engine.take_tokenizer(self._folders[role])
        self._loaded = (parameters, role)

    def close(self) -> None:
        self._opened.close()
        self._engine, self._loaded = None, (None, None)

    def _complete(self, title: str, task: Task, examples: Sequence[Example]) -> Iterator[tuple[Example, Completion]]:
        with progress_of(title, len(examples), "prompts", persistent=False) as progress:
            for position, completion in task.complete(self._engine, examples):
                progress.update()
                yield examples[position], completion

    def _start(self, parameters: MergeParameters) -> Engine:
        # Slow imports, which a finished search does not need.
        from inference_llms.engines.model_loading import check_weights, load_config, refusals_in_one_line
        from model_merging_methods.candidate_weights import CandidateMerges

        started = time.monotonic()
        setup = self._setup
        self._states = setup.states or MergeRequest(setup.pretrained, setup.finetuned, parameters).input_states()
        with refusals_in_one_line(setup.pretrained, "transformers"):
            check_weights(setup.pretrained, load_config(setup.pretrained))
        self._merges = CandidateMerges(setup.pretrained, setup.finetuned)
        self._merges.weights(parameters)  # reports faults of the models before the engine starts
        root = Path(self._opened.enter_context(TemporaryDirectory(prefix="search_mixup_")))
        self._folders = {role: root / role for role in setup.finetuned}
        for role, folder in self._folders.items():
            folder.mkdir()
            self._merges.write_model_files(folder, role, parameters)
        folder = next(iter(self._folders.values()))
        chosen = [getattr(setup, name) for name in ENGINE_OPTIONS]
        self._engine = open_engine(setup.backend, folder, *chosen, has_weights=False)
        self._opened.callback(self._engine.close)
        self._start_seconds = time.monotonic() - started
        if setup.backend == "vllm":
            self._prove(folder, parameters)
        self._new_start = self._start_seconds + self._proof_seconds
        return self._engine

    def _prove(self, folder: Path, parameters: MergeParameters) -> None:
        """Raise UserError unless vLLM computes with the weights of this merge once they are in the engine."""
        from inference_llms.engines.engine_proof import prove

        started = time.monotonic()
        prove(self._engine, folder, self._merges.weights(parameters))
        self._loaded = (parameters, None)
        self._proof_seconds = time.monotonic() - started


def _judge(task: Task, completed: Sequence[tuple[Example, Completion, float]]) -> list[Answer]:
    examples, completions, times = zip(*completed, strict=True)
    texts = [task.answer(completion) for completion in completions]
    is_readable, verdicts = task.is_readable, task.verdicts(examples, texts)
    return [
        Answer(
            example.id,
            str(completion),
            bool(right),
            when,
            cut_off=completion.cut_off,
            readable=None if is_readable is None else is_readable(text, example.row),
            tokens=completion.tokens,
        )
        for example, completion, text, right, when in zip(examples, completions, texts, verdicts, times, strict=True)
    ]


def check_verdicts(
    tasks: Mapping[str, Task], examples: Mapping[str, Sequence[Example]], allow_code_execution: bool
) -> None:
    """Raise UserError if a task's programs are not allowed or cannot run, or if its set has no reference answers."""
    for name, of_task in examples.items():
        task = tasks[name]
        if task.program is not None:
            if not allow_code_execution:
                raise UserError(
                    f"--tasks {name}: a search runs the programs that the models write; allow it with "
                    "--allow_code_execution, or remove the task"
                )
            check_guard()
        task.check_verdicts(of_task)
