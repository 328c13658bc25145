"""The edit distance and the limit on it."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptbench.edit_distance import edit_distance, within_edit_distance
from promptbench.prompt_words import PromptWords

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


@given(texts, texts)
def test_the_distance_is_the_fewest_edits_by_definition(first, second):
    @cache
    def fewest(old: int, new: int) -> int:
        if old == 0 or new == 0:
            return old + new
        return min(
            fewest(old - 1, new) + 1,
            fewest(old, new - 1) + 1,
            fewest(old - 1, new - 1) + (first[old - 1] != second[new - 1]),
        )

    assert edit_distance(first, second) == fewest(len(first), len(second))


def test_the_limit_is_counted_from_the_clean_prompt_and_may_be_reached():
    clean = PromptWords.of("abcdef ghi")
    current = clean.replace(1, "xyz")
    candidates = [current.replace(0, new) for new in ("abcdef", "Abcdef", "ABcdef")]
    assert within_edit_distance(4)(clean, current, candidates) == [True, True, False]
