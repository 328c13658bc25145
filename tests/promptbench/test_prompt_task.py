"""Labels read as PromptBench reads them, and GLUE's validation sets from files."""

import pytest

from promptbench.cola import TASK as COLA
from promptbench.prompt_task import Sample, load_validation_set
from promptbench.sst2 import TASK as SST2
from tests.inference_llms.support import DATA, needs_data
from utils.errors import UserError


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
    assert SST2.read_label(completion) == label


def test_labels_of_another_task_are_not_read():
    assert (COLA.read_label("unacceptable"), SST2.read_label("unacceptable")) == (0, None)


@needs_data
def test_the_published_sets_are_read_whole():
    sst2, cola = load_validation_set("sst2", DATA), load_validation_set("cola", DATA)
    assert (len(sst2), len(cola)) == (872, 516)
    assert sst2[0] == Sample("it 's a charming and often affecting journey . ", 1)
    assert cola[0] == Sample("somebody just left guess who", 1)
    assert {sample.label for sample in cola} == {0, 1}


def test_quotes_and_line_ends_are_part_of_the_text(tmp_path):
    (tmp_path / "cola_dev.tsv").write_bytes(b'"so he said\t1\r\n\n he "left\t0\n')
    assert load_validation_set("cola", tmp_path) == [Sample('"so he said', 1), Sample(' he "left', 0)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\t1\nb 0\n", "line 2 is not a text, a tab and 0 or 1"),
        ("a\t1\nb\t2\n", "line 2 is not a text, a tab and 0 or 1"),
        ("a\t1\n\t0\n", "line 2 is not a text, a tab and 0 or 1"),
        ("a\tb\t1\n", "line 1 is not a text, a tab and 0 or 1"),
        ("text\tlabel\n", "has no samples"),
        ("", "has no samples"),
    ],
)
def test_a_malformed_file_is_reported_with_its_line(content, message, tmp_path):
    (tmp_path / "sst2_dev.tsv").write_text(content)
    with pytest.raises(UserError, match=f"sst2_dev.tsv {message}"):
        load_validation_set("sst2", tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a folder"):
        load_validation_set("sst2", tmp_path / "nowhere")
