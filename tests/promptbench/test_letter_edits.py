"""Character edits and the edit distance."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptbench.letter_edits import HOMOGLYPHS, edit_distance, with_homoglyphs, within_edit_distance
from promptbench.prompt_words import WORD, PromptWords

texts = st.text(alphabet="ab ", max_size=8)


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("kitten", "sitting", 3),
        ("intention", "execution", 5),
        ("respond", "repsond", 2),  # a swap is two edits
        ("text", "Text", 1),
        ("aaa", "aa", 1),
        ("\u0435", "e", 1),
    ],
)
def test_distances_known_by_hand(first, second, distance):
    assert edit_distance(first, second) == edit_distance(second, first) == distance


@given(texts, texts, texts)
def test_the_edit_distance_is_a_metric_that_one_edit_changes_by_at_most_one(first, second, third):
    assert edit_distance(first, second) <= edit_distance(first, third) + edit_distance(third, second)
    assert (edit_distance(first, second) == 0) == (first == second)
    assert abs(edit_distance(first + "a", second) - edit_distance(first, second)) <= 1


def test_the_limit_counts_from_the_clean_prompt_and_may_be_reached():
    clean = PromptWords.of("abcdef ghi")
    current = clean.replace(1, "xyz")
    candidates = [current.replace(0, new) for new in ("abcdef", "Abcdef", "ABcdef")]
    assert within_edit_distance(4)(clean, current, candidates) == [True, True, False]


def test_small_letters_digits_hyphen_and_apostrophe_have_different_homoglyphs():
    assert set(HOMOGLYPHS) == set(string.ascii_lowercase + string.digits + "-'")
    assert all(len(look_alike) == 1 and look_alike != letter for letter, look_alike in HOMOGLYPHS.items())
    assert len(set(HOMOGLYPHS.values())) == len(HOMOGLYPHS)


@pytest.mark.parametrize(
    ("word", "candidates"),
    [
        ("co", ["\u03f2o", "c\u043e"]),
        ("Xe", ["X\u0435"]),
        ("0-1", ["O-1", "0\u02d71", "0-l"]),
        ("a'", ["\u0251'", "a`"]),
        ("ABC", []),
        ("\u00e9", []),
    ],
)
def test_homoglyphs_of_a_word_by_hand(word, candidates):
    assert with_homoglyphs(word) == candidates


@given(st.text(alphabet=string.ascii_letters + string.digits + "\u00e9", min_size=1))
def test_homoglyphs_leave_a_word_one_word(word):
    assert all(WORD.fullmatch(candidate) for candidate in with_homoglyphs(word))
