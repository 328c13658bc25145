"""Completions of one merge after another, all from one engine that is never restarted."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from inference_llms.engines.engine import Engine
from inference_llms.engines.open_engine import open_engine
from inference_llms.task import Example, Task
from model_merging_methods.merge_parameters import MergeParameters
from model_merging_methods.merge_record import MergeRequest, input_states
from utils.content_hashes import FileStates, check_unchanged, file_states
from utils.progress import progress_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Models:
    """The folders of a pretrained model and of its fine-tunes by role, in model order. `states`: those of their files
    when the search was identified; None where that was on another machine."""

    pretrained: Path
    finetuned: Mapping[str, Path]
    states: FileStates | None = None


@dataclass(frozen=True)
class EngineOptions:
    """The engine to start: vllm or transformers. `executor`: what starts vLLM's workers, mp or ray; None: as vLLM
    chooses. `max_tokens` caps every task's completions."""

    backend: str
    tensor_parallel_size: int | None = 1
    pipeline_parallel_size: int = 1
    executor: str | None = None
    engine_dtype: str = "float32"
    max_tokens: int | None = None


@dataclass
class Seconds:
    """Time spent on starting the engine, on its proof, on putting weights into it, and on completions."""

    start: float = 0.0
    proof: float = 0.0
    replacing: float = 0.0
    completing: float = 0.0
    replacements: int = 0

    def told(self) -> str:
        each = self.replacing / max(self.replacements, 1)
        return (
            f"engine start {self.start:.1f} s, {self.replacements} replacements of its weights {each:.2f} s each, "
            f"its proof {self.proof:.1f} s, completions {self.completing:.1f} s"
        )


class LiveMerges:
    """The engine starts with the first completion that is asked for; `close` ends it."""

    def __init__(self, models: Models, options: EngineOptions):
        self._models = models
        self._options = options
        self._opened = ExitStack()
        self._engine: Engine | None = None
        self._in_engine: MergeParameters | None = None
        self._role_in_engine: str | None = None
        self.seconds = Seconds()

    def take(self, parameters: MergeParameters, role: str) -> None:
        """Have this merge in the engine, with the tokenizer of `role`.

        Raises UserError for models that cannot be merged, or not run.
        """
        engine = self._engine or self._start(parameters)
        if self._in_engine != parameters:
            started = time.monotonic()
            self._in_engine = None
            engine.replace_weights(self._merges.weights(parameters))
            check_unchanged(self._states, file_states(self._states))
            self._in_engine = parameters
            self.seconds.replacing += time.monotonic() - started
            self.seconds.replacements += 1
        if self._role_in_engine != role:
            engine.take_tokenizer(self._folders[role])
            self._role_in_engine = role

    def complete(self, task: Task, examples: Sequence[Example], title: str) -> Iterator[tuple[Example, str]]:
        """All examples at once, by the merge in the engine; each as soon as it is there."""
        started = time.monotonic()
        prompts = [example.prompt for example in examples]
        sampling = task.sampling.capped(self._options.max_tokens)
        with progress_of(title, len(prompts), "prompts", stays=False) as progress:
            for position, completion in self._engine.complete(prompts, sampling):
                progress.update()
                yield examples[position], completion
        self.seconds.completing += time.monotonic() - started

    def close(self) -> None:
        self._opened.close()
        self._engine = self._in_engine = self._role_in_engine = None

    def _start(self, parameters: MergeParameters) -> Engine:
        # Both bring in much that a search without a missing answer does without.
        from inference_llms.engines.model_loading import check_weights, load_config, refusals_in_one_line
        from model_merging_methods.candidate_weights import CandidateMerges

        started = time.monotonic()
        models, options = self._models, self._options
        request = MergeRequest(models.pretrained, models.finetuned, parameters)
        self._states = input_states(request) if models.states is None else models.states
        with refusals_in_one_line(models.pretrained, "transformers"):
            check_weights(models.pretrained, load_config(models.pretrained))
        self._merges = CandidateMerges(models.pretrained, models.finetuned)
        self._merges.weights(parameters)  # what is wrong with the models is told before the engine starts
        root = Path(self._opened.enter_context(TemporaryDirectory(prefix="search_mixup_")))
        self._folders = {role: root / role for role in models.finetuned}
        for role, folder in self._folders.items():
            folder.mkdir()
            self._merges.write_model_files(folder, role, parameters)
        self._engine = open_engine(
            options.backend,
            next(iter(self._folders.values())),
            options.tensor_parallel_size,
            options.pipeline_parallel_size,
            options.engine_dtype,
            options.executor,
            has_weights=False,
        )
        self._opened.callback(self._engine.close)
        self.seconds.start = time.monotonic() - started
        if options.backend == "vllm":
            self._prove(parameters)
        return self._engine

    def _prove(self, parameters: MergeParameters) -> None:
        """Raise UserError unless vLLM computes with the weights of this merge once they are in the engine."""
        from inference_llms.engines.engine_proof import prove

        started = time.monotonic()
        prove(self._engine, next(iter(self._folders.values())), self._merges.weights(parameters))
        self._in_engine = parameters
        self.seconds.proof = time.monotonic() - started
