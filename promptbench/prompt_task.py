"""Classification tasks: a prompt, its labels, and the samples to insert into it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from inference_llms.data_sets import check_rows, load_from_hub, published_rows
from utils.content_hashes import unchanged
from utils.errors import UserError

PLACEHOLDER = "{content}"
_FIELDS = {"sentence": str, "label": int}
_AROUND_ANSWER = ",._\"'-+=!?()&^%$#@:\\|{}[]<>/`\n\t\r\v\f "


@dataclass(frozen=True)
class Sample:
    """One text of a data set and the number of its label."""

    text: str
    label: int


@dataclass(frozen=True)
class PromptTask:
    """A data set and how a model is prompted with it.

    `prompt` contains `{content}` once. `labels`: the answer words and their numbers. `paraphrases`: other prompts with
    the same meaning. `load_samples(data_dir)` returns the whole set in its order.
    """

    name: str
    prompt: str
    labels: Mapping[str, int]
    paraphrases: tuple[str, ...]
    load_samples: Callable[[Path | None], Sequence[Sample]]

    def check_prompts(self) -> None:
        """Raise UserError unless each prompt contains the placeholder exactly once."""
        for prompt in (self.prompt, *self.paraphrases):
            if prompt.count(PLACEHOLDER) != 1:
                raise UserError(f"{self.name}: a prompt must contain {PLACEHOLDER} once; this one does not: {prompt!r}")

    @property
    def protected_words(self) -> frozenset[str]:
        """Words that no attack may change, in lower case: the labels, with and without a closing quote, and the word in
        the placeholder."""
        return frozenset({"content"} | {form for label in self.labels for form in (label, f"{label}'")})

    def read_label(self, completion: str) -> int | None:
        """The number of the label that a completion ends with, read as PromptBench does; None for any other last word.

        Padding and end marks are removed, then surrounding white space and punctuation. The last word is the text after
        the last space, in lower case and without apostrophes.
        """
        text = completion.lower().replace("<pad>", "").replace("</s>", "").strip(_AROUND_ANSWER)
        return self.labels.get(text.split(" ")[-1].replace("'", ""))


def load_validation_set(name: str, data_dir: Path | None) -> Sequence[Sample]:
    """The validation set of GLUE's `name` (sst2, cola) in its order, from `data_dir`/<name>_dev.tsv if that exists (a
    line is a text, a tab, and 0 or 1; a header line is skipped), else through `datasets`.

    Raises UserError for a missing folder, a file without samples, a malformed line, and a set that is not available.
    """
    file = f"{name}_dev.tsv"
    if data_dir is not None:
        if not data_dir.is_dir():
            raise UserError(f"--data_dir {data_dir} is not a folder; give one that contains {file}")
        if (data_dir / file).is_file():
            with unchanged([data_dir / file]):
                return _read_samples(data_dir / file)
    published_as = f"nyu-mll/glue ({name})"
    rows = published_rows(published_as, lambda: load_from_hub("nyu-mll/glue", name, split="validation"), file)
    check_rows(published_as, rows, _FIELDS)
    return [Sample(row.fields["sentence"], row.fields["label"]) for row in rows]


def _read_samples(path: Path) -> Sequence[Sample]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({error}); replace it with the set's own file") from error
    samples = []
    for number, line in enumerate((line.removesuffix("\r") for line in lines), 1):
        text, tab, label = line.rpartition("\t")
        if not line.strip() or (number == 1 and tab and label == "label"):
            continue
        if not text.strip() or "\t" in text or label not in ("0", "1"):
            raise UserError(f"{path} line {number} is not a text, a tab and 0 or 1; fix or remove the line")
        samples.append(Sample(text, int(label)))
    if not samples:
        raise UserError(f"{path} has no samples; replace it with the set's own file")
    return samples
