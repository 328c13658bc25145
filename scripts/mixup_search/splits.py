"""Split of each task's examples into a validation part, which chooses a merge, and a test part, which tests it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inference_llms.task import Example, Task
from utils.content_hashes import json_hash
from utils.errors import UserError


@dataclass(frozen=True)
class TaskParts:
    """The two parts of a task, without a common prompt. `validation` is in random order, so that its first examples are
    a sample of it."""

    validation: Sequence[Example]
    test: Sequence[Example]

    def digest(self) -> str:
        """A hash of ids, prompts and rows, in order."""
        parts = (self.validation, self.test)
        return json_hash([[[example.id, example.prompt, example.row] for example in part] for part in parts])


def split_task(
    task: Task, data_dir: Path | None, validation_dir: Path | None, num_validation: int, num_test: int | None, seed: int
) -> TaskParts:
    """Draw `num_validation` examples with the seed, from the set in `validation_dir` if given, else from the test set.
    Up to `num_test` of the other examples of the test set are the test part.

    Raises UserError if there are too few examples, or none is left to test.
    """
    if validation_dir is not None and not task.data_set.files_in(validation_dir):
        raise UserError(f"--validation_dir {validation_dir}: has no {task.data_set.files[0]}; put it there")
    test_set = task.load_examples(data_dir)
    source = test_set if validation_dir is None else task.load_examples(validation_dir)
    most = len(source) - (validation_dir is None)
    if num_validation > most:
        raise UserError(
            f"--num_validation {num_validation}: {task.name} has {len(source)} examples"
            f"{', and one must be left to test' if validation_dir is None else ' there'}; give {most} or fewer"
        )
    drawn = random.Random(f"{seed} validation {task.name}").sample(range(len(source)), num_validation)
    validation = [source[position] for position in drawn]
    prompts = {example.prompt for example in validation}  # a set may hold the same prompt twice
    rest = [example for example in test_set if example.prompt not in prompts]
    if not rest:
        raise UserError(f"--num_validation {num_validation}: leaves no example of {task.name} to test; give fewer")
    if num_test is not None and num_test < len(rest):
        kept = sorted(random.Random(f"{seed} test {task.name}").sample(range(len(rest)), num_test))
        rest = [rest[position] for position in kept]
    return TaskParts(validation, rest)


def split_sentence(validation_dir: Path | None, num_validation: int, num_test: int | None, seed: int) -> str:
    """Describe the parts, for a report."""
    if validation_dir is None:
        source = "the test set"
        size = "all other examples" if num_test is None else f"up to {num_test} other examples"
    else:
        source = f"the sets in {validation_dir}"
        size = "the whole test set" if num_test is None else f"up to {num_test} examples of the test set"
    return (
        f"Validation: {num_validation} examples of each task, drawn with seed {seed} from {source}. Test: {size}, "
        "which the choice never sees."
    )
