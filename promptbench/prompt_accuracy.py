"""The accuracy of a model with a prompt: every pair of a prompt and a sample asked once, and kept."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from inference_llms.answer_health import Health, health_of
from inference_llms.engines.engine import CutOff, Engine, Sampling
from inference_llms.raw_generations import appended_rows, check_same_run, cut_off, read_identity, whole_lines
from promptbench.labels import read_label
from promptbench.prompt_task import PLACEHOLDER, PromptTask, Sample
from utils.errors import UserError
from utils.progress import progress_of
from utils.whole_files import locked

SAMPLING = Sampling(max_tokens=1024, stop=("Instruction:", "Instruction", "Response:", "Response"))
_NOT_ASKED = -2
_NO_LABEL = -1


class PromptAccuracy:
    """Accuracies with prompts over some samples of a task; a callable for `search`.

    Completions are kept in `path` as they come, and what stands there is not asked again: pairs of a prompt and a
    sample are known by the prompt's digest and the sample's position. `identity` says whose they are.
    `open_engine` is called once, and only if a pair is missing. Holds `path` from before it is read until `close`;
    raises UserError where another process does.
    """

    def __init__(
        self,
        task: PromptTask,
        samples: Sequence[Sample],
        path: Path,
        identity: dict[str, Any],
        open_engine: Callable[[], Engine],
        sampling: Sampling = SAMPLING,
    ):
        self._task = task
        self._samples = samples
        self._gold = np.array([sample.label for sample in samples], np.int8)
        self._path = path
        self._identity = identity
        self._open_engine = open_engine
        self._sampling = sampling
        self._engine: Engine | None = None
        self._labels: dict[str, np.ndarray] = {}
        with ExitStack() as opened:
            opened.enter_context(locked(path))
            self._read_stored()
            self._opened = opened.pop_all()

    def __call__(self, prompts: Sequence[str]) -> list[float]:
        """The share of samples answered rightly with each prompt; what is missing goes to the engine in one call."""
        missing = [
            (prompt, sample)
            for prompt in prompts
            for sample in np.flatnonzero(self._labels_with(prompt) == _NOT_ASKED).tolist()
        ]
        if missing:
            self._ask(missing)
        return [self.number_right(prompt) / len(self._samples) for prompt in prompts]

    @property
    def number_of_samples(self) -> int:
        return len(self._samples)

    def number_right(self, prompt: str) -> int:
        """Of the samples, how many were answered rightly with a prompt that was asked."""
        return int(np.count_nonzero(self._labels_with(prompt) == self._gold))

    def right(self, prompt: str) -> list[bool]:
        """Of each sample, whether it was answered rightly with a prompt that was asked."""
        return (self._labels_with(prompt) == self._gold).tolist()

    def completions(self, prompt: str) -> list[tuple[str, bool | None]]:
        """What each sample was answered with a prompt that was asked, and whether the limit of tokens cut it off."""
        digest = _digest(prompt)
        found = {row["sample"]: (row["completion"], cut_off(row)) for row in self._rows() if row["prompt"] == digest}
        return [found[sample] for sample in range(len(self._samples))]

    def health(self, prompt: str) -> Health:
        """The health of the answers with a prompt that was asked."""
        texts, cut = zip(*self.completions(prompt), strict=True)
        return health_of(texts, cut, (self._labels_with(prompt) != _NO_LABEL).tolist())

    def close(self) -> None:
        """Free the engine."""
        self._opened.close()
        self._engine = None

    def _labels_with(self, prompt: str) -> np.ndarray:
        return self._labels.setdefault(_digest(prompt), np.full(len(self._samples), _NOT_ASKED, np.int8))

    def _ask(self, missing: Sequence[tuple[str, int]]) -> None:
        if self._engine is None:
            self._engine = self._open_engine()
            self._opened.callback(self._engine.close)
        texts = [prompt.replace(PLACEHOLDER, self._samples[sample].text) for prompt, sample in missing]
        with (
            appended_rows(self._path, self._identity, overwrite=False) as write_row,
            progress_of(self._task.name, len(missing), "prompts", stays=False) as progress,
        ):
            for position, completion in self._engine.complete(texts, self._sampling):
                prompt, sample = missing[position]
                row = {"prompt": _digest(prompt), "sample": sample, "completion": completion}
                write_row({**row, "cut_off": isinstance(completion, CutOff)})
                self._keep(_digest(prompt), sample, completion)
                progress.update()

    def _keep(self, digest: str, sample: int, completion: str) -> None:
        label = read_label(completion, self._task.labels)
        answers = self._labels.setdefault(digest, np.full(len(self._samples), _NOT_ASKED, np.int8))
        answers[sample] = _NO_LABEL if label is None else label

    def _read_stored(self) -> None:
        if whole_lines(self._path) == 0:
            return
        check_same_run(self._path, read_identity(self._path), self._identity)
        for row in self._rows():
            self._keep(row["prompt"], row["sample"], row["completion"])

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The stored rows, without a last one that a kill cut off. Raises UserError for a broken one."""
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
                        f"{self._path} line {number} is broken; remove that line, and its sample is asked again"
                    ) from error
                yield row


def _digest(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:32]
