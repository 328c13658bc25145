"""A task that is asked with a prompt and answered with a label."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError

PLACEHOLDER = "{content}"


@dataclass(frozen=True)
class Sample:
    """One text of a data set and its label's number."""

    text: str
    label: int


@dataclass(frozen=True)
class PromptTask:
    """A data set and how it is asked.

    `prompt` holds `{content}` once. `labels`: the words that answer it, with the number that each means.
    `paraphrases`: further prompts of the same meaning. `load_samples(data_dir)` gives the whole set in its order.
    """

    name: str
    prompt: str
    labels: Mapping[str, int]
    paraphrases: tuple[str, ...]
    load_samples: Callable[[Path | None], Sequence[Sample]]

    def check_prompts(self) -> None:
        """Raise UserError for a prompt that has no place for the text, or several."""
        for prompt in (self.prompt, *self.paraphrases):
            if prompt.count(PLACEHOLDER) != 1:
                raise UserError(f"{self.name}: a prompt must hold {PLACEHOLDER} once, and this does not: {prompt!r}")

    @property
    def protected_words(self) -> frozenset[str]:
        """Words that no attack may change, in lower case: the labels, as a closing quote leaves them too, and the
        placeholder's."""
        return frozenset({"content"} | {form for label in self.labels for form in (label, f"{label}'")})
