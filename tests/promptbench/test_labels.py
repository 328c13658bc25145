"""Labels are read from completions as PromptBench reads them."""

import pytest

from promptbench.cola import TASK as COLA
from promptbench.labels import read_label
from promptbench.sst2 import TASK as SST2


@pytest.mark.parametrize(
    ("completion", "label"),
    [
        ("positive", 1),
        (" Negative.", 0),
        ("The text is 'positive'.", 1),
        ("POSITIVE</s>", 1),
        ("<pad><pad> negative </s>", 0),
        ("[{(negative)}]\n", 0),
        ("posi'tive", 1),
        ("negative\npositive", None),
        ("positive or so", None),
        ("It is not-positive", None),
        ("", None),
        ("...", None),
        ("neutral", None),
        ("positive , negative", 0),
    ],
)
def test_the_last_word_is_the_label(completion, label):
    assert read_label(completion, SST2.labels) == label


def test_labels_are_the_tasks_own():
    assert (read_label("unacceptable", COLA.labels), read_label("unacceptable", SST2.labels)) == (0, None)
