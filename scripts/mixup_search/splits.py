"""Which examples of a task choose a merge, and which then test it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inference_llms.task import Example, Task
from utils.errors import UserError


@dataclass(frozen=True)
class TaskParts:
    """A task's two parts; no prompt is in both. `validation` is in random order, so that its first examples are a
    sample of it."""

    validation: Sequence[Example]
    test: Sequence[Example]


def split_task(
    task: Task, data_dir: Path | None, validation_dir: Path | None, num_validation: int, num_test: int | None, seed: int
) -> TaskParts:
    """Draw `num_validation` examples by the seed: from the set in `validation_dir` (say, of training splits) where one
    is given, else from the test set, whose other examples (`num_test` of them at most) are the test part.

    Raises UserError where there are not as many, or where none is left to test.
    """
    if validation_dir is not None and not task.data_set.files_in(validation_dir):
        raise UserError(f"--validation_dir {validation_dir} holds no {task.data_set.files[0]}; put it there")
    test_set = task.load_examples(data_dir)
    source = test_set if validation_dir is None else task.load_examples(validation_dir)
    left = len(source) - (validation_dir is None)
    if num_validation > left:
        raise UserError(
            f"--num_validation {num_validation}: {task.name} has {len(source)} examples there"
            f"{' and one must be left to test' if validation_dir is None else ''}; give {left} or fewer"
        )
    drawn = random.Random(f"{seed} validation {task.name}").sample(range(len(source)), num_validation)
    validation = [source[position] for position in drawn]
    chosen = {example.prompt for example in validation}  # a set may ask the same twice
    rest = [example for example in test_set if example.prompt not in chosen]
    if not rest:
        raise UserError(f"--num_validation {num_validation}: leaves no example of {task.name} to test; give fewer")
    if num_test is not None and num_test < len(rest):
        kept = sorted(random.Random(f"{seed} test {task.name}").sample(range(len(rest)), num_test))
        rest = [rest[position] for position in kept]
    return TaskParts(validation, rest)


def split_sentence(num_validation: int, validation_dir: Path | None, num_test: int | None, seed: int) -> str:
    """How the parts were made, for a report."""
    source = "the test set, which leaves them out" if validation_dir is None else f"the sets in {validation_dir}"
    size = "all others" if num_test is None else f"{num_test} others at most"
    if validation_dir is not None:
        size = "the whole test set" if num_test is None else f"{num_test} examples of it at most"
    return (
        f"Validation: {num_validation} examples of each task, drawn with seed {seed} from {source}. Test: {size}; the "
        "choice never saw them."
    )
