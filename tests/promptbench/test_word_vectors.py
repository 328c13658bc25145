"""Word vectors from a file, and the words near to a word."""

import math
import time

import numpy as np
import pytest

from promptbench.missing_part import MissingPart
from promptbench.word_vectors import WordVectors, open_word_vectors
from tests.promptbench.attack_parts import write_vectors
from utils.errors import UserError


def at_angle(degrees: float, length: float = 1.0) -> tuple[float, float]:
    return length * math.cos(math.radians(degrees)), length * math.sin(math.radians(degrees))


VECTORS = {
    "judge": at_angle(0),
    "far": at_angle(180),
    "assess": at_angle(-20, 7),
    "rate": at_angle(20, 0.1),
    "weigh": at_angle(10),
    "shout": at_angle(61),
    "rank": at_angle(59),
}


@pytest.fixture
def vectors(tmp_path) -> WordVectors:
    return open_word_vectors(write_vectors(tmp_path / "vectors.txt", VECTORS))


def test_the_nearest_by_angle_come_first_whatever_their_length(vectors):
    assert vectors.nearest("judge", 3) in (["weigh", "assess", "rate"], ["weigh", "rate", "assess"])
    assert vectors.nearest("judge", 50) == [*vectors.nearest("judge", 3), "rank", "shout", "far"]


def test_of_equally_near_words_the_first_in_the_file_comes_first():
    vectors = WordVectors(["a", "c", "b", "d"], np.array([[1, 0], [0, 2], [0, 1], [0, 3]], np.float32))
    assert vectors.nearest("a", 3) == ["c", "b", "d"]
    assert vectors.nearest("a", 2) == ["c", "b"]


def test_words_beyond_the_least_cosine_are_left_out_and_none_comes_in_their_place(vectors):
    assert set(vectors.nearest("judge", 50, 0.5)) == {"weigh", "assess", "rate", "rank"}  # cos 60 degrees
    assert vectors.nearest("judge", 1, 0.99) == []  # the nearest is at 0.985


@pytest.mark.parametrize(
    ("word", "nearest"), [("judge", "weigh"), ("Judge", "Weigh"), ("JUDGE", "WEIGH"), ("jUdge", "weigh")]
)
def test_a_word_is_looked_up_in_small_letters_and_the_near_one_written_alike(vectors, word, nearest):
    assert vectors.nearest(word, 1) == [nearest]


def test_a_word_without_a_vector_has_none_near(vectors):
    assert vectors.nearest("judge'", 5) == vectors.nearest("nonsense", 5) == []


def test_the_word_itself_is_never_near_however_the_file_writes_it(tmp_path):
    vectors = open_word_vectors(write_vectors(tmp_path / "v.txt", {"Text": (1, 0), "text": (1, 0.01), "TEXT": (1, 0)}))
    assert vectors.nearest("text", 5) == []


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"good 1 0\nbad 1 x\n", "line 2"),
        (b"good 1 0\nbad 1\n", "line 2 has 1 numbers where line 1 has 2"),
        (b"good 1 0\n\nbad 1 0\n", "line 2"),
        (b"good\n", "line 1"),
        (b"good nan 0\n", "line 1"),
        (b"good 1 0\nbad 0 0\n", "line 2"),
        (b"good 1 0\n\xff\xfe 1 0\n", "line 2"),
        (b"", "empty"),
    ],
)
def test_a_malformed_line_is_named_with_the_file(tmp_path, content, told):
    path = tmp_path / "vectors.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=told) as error:
        open_word_vectors(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not isinstance(error.value, MissingPart)


def test_no_file_is_a_missing_part_and_where_to_get_it_is_told(tmp_path):
    for path in (None, tmp_path / "none.txt", tmp_path):
        with pytest.raises(MissingPart, match=r"--word_vectors .*counter-fitting"):
            open_word_vectors(path)


def test_a_tenth_of_the_counter_fitted_set_loads_in_seconds_and_is_searched_at_once(tmp_path):
    rows = np.random.default_rng(0).normal(size=(6500, 300))
    path = tmp_path / "vectors.txt"
    path.write_text("".join(f"w{i} {' '.join(f'{x:.6f}' for x in row)}\n" for i, row in enumerate(rows)))
    start = time.perf_counter()
    vectors = open_word_vectors(path)
    assert time.perf_counter() - start < 10
    start = time.perf_counter()
    assert len(vectors.nearest("w0", 50)) == 50
    assert time.perf_counter() - start < 1
