"""Characters that look like others."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptbench.homoglyphs import HOMOGLYPHS, with_homoglyphs
from promptbench.prompt_words import cut_words


def test_small_letters_digits_hyphen_and_apostrophe_have_one_and_capitals_none():
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
def test_what_becomes_of_a_word_by_hand(word, candidates):
    assert with_homoglyphs(word) == candidates


@given(st.text(alphabet=string.ascii_letters + string.digits + "\u00e9", min_size=1))
def test_one_character_changes_and_the_word_stays_one_word(word):
    for candidate in with_homoglyphs(word):
        assert [HOMOGLYPHS.get(old) == new for old, new in zip(word, candidate, strict=True) if old != new] == [True]
        assert cut_words(candidate) == [(candidate, 0, len(candidate))]
