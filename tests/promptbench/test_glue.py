"""GLUE's validation sets from files."""

import pytest

from promptbench.glue import load_validation_set
from promptbench.prompt_task import Sample
from tests.inference_llms.support import DATA, needs_data
from utils.errors import UserError


@needs_data
def test_the_real_sets_are_read_whole():
    sst2, cola = load_validation_set("sst2", DATA), load_validation_set("cola", DATA)
    assert (len(sst2), len(cola)) == (872, 516)
    assert sst2[0] == Sample("it 's a charming and often affecting journey . ", 1)
    assert cola[0] == Sample("somebody just left guess who", 1)
    assert {sample.label for sample in cola} == {0, 1}


def test_quotes_and_line_ends_are_text(tmp_path):
    (tmp_path / "cola_dev.tsv").write_bytes(b'"so he said\t1\r\n\n he "left\t0\n')
    assert load_validation_set("cola", tmp_path) == [Sample('"so he said', 1), Sample(' he "left', 0)]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a\t1\nb 0\n", "line 2"),
        ("a\t1\nb\t2\n", "line 2"),
        ("a\t1\n\t0\n", "line 2"),
        ("a\tb\t1\n", "line 1"),
        ("text\tlabel\n", "holds no samples"),
        ("", "holds no samples"),
    ],
)
def test_a_malformed_file_is_told_with_its_line(content, told, tmp_path):
    (tmp_path / "sst2_dev.tsv").write_text(content)
    with pytest.raises(UserError, match=told):
        load_validation_set("sst2", tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        load_validation_set("sst2", tmp_path / "nowhere")
