"""What a task is: examples in, metrics and evaluators' files out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from inference_llms.engines.engine import Sampling
from utils.output_places import OutputPlaces


@dataclass(frozen=True)
class Example:
    """One example of a set: its id (position in the set, or the set's own task_id), prompt and data row."""

    id: int | str
    prompt: str
    row: dict[str, Any]


@dataclass(frozen=True)
class Answers:
    """The completions of a run for one task, one for each of `examples`, which are a slice of `whole_set`.

    `times`: when each was there, in seconds since 1970. `model` is the path of the model that gave them. `data_dir`:
    where the set's files were looked for.
    """

    examples: Sequence[Example]
    completions: Sequence[str]
    times: Sequence[float]
    whole_set: Sequence[Example]
    model: str
    data_dir: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of the answers: metrics as fractions of the examples, the files written, and the
    command of the evaluator that takes them."""

    metrics: dict[str, float] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    evaluator_command: str | None = None


@dataclass(frozen=True)
class Task:
    """One benchmark. `load_examples(data_dir)` gives the whole set in its order; `finish(answers, places)`
    extracts, scores, and writes the evaluator's files. `check(times, places)`, called before anything is generated
    with the times of the completions that are there, by id, raises UserError where `finish` would replace the files
    of another run. `is_right(completion, row)`: whether one completion is right, of a task where that can be told from
    the example's row. `is_readable(completion, row)`: whether a completion holds the number, expression or program that
    the task looks for, right or wrong; None for a task that takes any text. `set_files`: the names of the set's file in
    a data folder, the first found being the one."""

    name: str
    sampling: Sampling
    load_examples: Callable[[Path | None], list[Example]]
    finish: Callable[[Answers, OutputPlaces], Outcome]
    check: Callable[[Mapping[int | str, float], OutputPlaces], None] = lambda times, places: None
    is_right: Callable[[str, Mapping[str, Any]], bool] | None = None
    is_readable: Callable[[str, Mapping[str, Any]], bool] | None = None
    set_files: tuple[str, ...] = ()

    def capped(self, max_tokens: int | None) -> "Task":
        """The same task, with completions of at most `max_tokens` new tokens; None: as they are."""
        return replace(self, sampling=self.sampling.capped(max_tokens))


def share(verdicts: Sequence[bool]) -> float:
    """The fraction of `verdicts` that are true."""
    return sum(verdicts) / len(verdicts)
