"""A model's accuracy with a prompt. Each pair of a prompt and a sample is completed once, and stored."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from inference_llms.answer_health import Health, health_of
from inference_llms.engines.engine import Engine, Sampling
from inference_llms.prompt_format import PAPER_PROMPTS, PromptFormat, complete
from inference_llms.raw_generations import appended_rows, check_same_run, cut_off, read_identity, whole_lines
from promptbench.prompt_task import PLACEHOLDER, PromptTask, Sample
from utils.errors import UserError
from utils.progress import progress_of
from utils.whole_files import locked

SAMPLING = Sampling(max_tokens=1024, stop=("Instruction:", "Instruction", "Response:", "Response"))
_NOT_COMPLETED = -2
_NO_LABEL = -1


class PromptAccuracy:
    """A callable for `search`: the accuracy with each prompt over some samples of a task.

    Completions are stored in `path` as they arrive and never generated twice; the prompt's digest and the sample's
    position identify them. `identity` describes the run they belong to. `open_engine` is called once, and only if a
    completion is missing. Locks `path` until `close`; raises UserError if another process holds it.
    """

    def __init__(
        self,
        task: PromptTask,
        samples: Sequence[Sample],
        path: Path,
        identity: dict[str, Any],
        open_engine: Callable[[], Engine],
        sampling: Sampling = SAMPLING,
        prompt_format: PromptFormat = PAPER_PROMPTS,
    ):
        self._task = task
        self._samples = samples
        self._gold = np.array([sample.label for sample in samples], np.int8)
        self._path = path
        self._identity = identity
        self._open_engine = open_engine
        self._sampling = sampling
        self._prompt_format = prompt_format
        self._engine: Engine | None = None
        self._labels_of: dict[str, np.ndarray] = {}
        with ExitStack() as opened:
            opened.enter_context(locked(path))
            if whole_lines(path):
                check_same_run(path, read_identity(path), identity)
                for row in self._rows():
                    self._keep_label(row)
            self._opened = opened.pop_all()

    def __call__(self, prompts: Sequence[str]) -> list[float]:
        """The share of samples answered correctly with each prompt. Missing completions are generated in one call."""
        missing = [
            (prompt, sample)
            for prompt in prompts
            for sample in np.flatnonzero(self._labels(_digest(prompt)) == _NOT_COMPLETED).tolist()
        ]
        if missing:
            self._complete(missing)
        return [sum(self.right(prompt)) / len(self._samples) for prompt in prompts]

    def right(self, prompt: str) -> list[bool]:
        """For each sample, whether it was answered correctly with a scored prompt."""
        return (self._labels(_digest(prompt)) == self._gold).tolist()

    def completions(self, prompt: str) -> list[tuple[str, bool | None]]:
        """The completion for each sample with a scored prompt, and whether the token limit cut it off."""
        digest = _digest(prompt)
        stored = {row["sample"]: (row["completion"], cut_off(row)) for row in self._rows() if row["prompt"] == digest}
        return [stored[sample] for sample in range(len(self._samples))]

    def health(self, prompt: str) -> Health:
        """The health of the answers with a scored prompt."""
        texts, cut = zip(*self.completions(prompt), strict=True)
        return health_of(texts, cut, (self._labels(_digest(prompt)) != _NO_LABEL).tolist())

    def close(self) -> None:
        """Free the engine and the lock."""
        self._opened.close()
        self._engine = None

    def _labels(self, digest: str) -> np.ndarray:
        return self._labels_of.setdefault(digest, np.full(len(self._samples), _NOT_COMPLETED, np.int8))

    def _complete(self, missing: Sequence[tuple[str, int]]) -> None:
        if self._engine is None:
            self._engine = self._open_engine()
            self._opened.callback(self._engine.close)
        texts = (prompt.replace(PLACEHOLDER, self._samples[sample].text) for prompt, sample in missing)
        prompts = [self._prompt_format.prompt(text) for text in texts]
        with (
            appended_rows(self._path, self._identity, overwrite=False) as write_row,
            progress_of(self._task.name, len(missing), "prompts", persistent=False) as progress,
        ):
            for position, completion in complete(self._engine, prompts, self._sampling):
                prompt, sample = missing[position]
                row = {"prompt": _digest(prompt), "sample": sample, "completion": completion}
                write_row({**row, "cut_off": completion.cut_off, "tokens": completion.tokens})
                self._keep_label(row)
                progress.update()

    def _keep_label(self, row: dict[str, Any]) -> None:
        label = self._task.read_label(self._prompt_format.answer(row["completion"]))
        self._labels(row["prompt"])[row["sample"]] = _NO_LABEL if label is None else label

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The stored rows, except an incomplete last line of a killed run. Raises UserError for a broken row."""
        size = whole_lines(self._path)
        with open(self._path, "rb") as file:
            number = 0
            while file.tell() < size:
                number += 1
                try:
                    row = json.loads(file.readline())
                    if not (isinstance(row["prompt"], str) and isinstance(row["completion"], str)):
                        raise TypeError
                    if row["sample"] not in range(len(self._samples)):
                        raise IndexError
                except (ValueError, KeyError, TypeError, IndexError) as error:
                    raise UserError(
                        f"{self._path} line {number} is broken; remove that line, and its sample is completed again"
                    ) from error
                yield row


def _digest(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:32]
