"""Likeness of texts, by a real sentence encoder."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptbench.attack import both
from promptbench.missing_part import MissingPart
from promptbench.prompt_words import PromptWords
from promptbench.sentence_similarity import (
    SentenceEncoder,
    cosine_at_angular_similarity,
    open_sentence_encoder,
    similar_around_change,
    similar_to_clean,
    window,
)
from tests.promptbench.attack_parts import ENCODER
from utils.errors import UserError

CLEAN = PromptWords.of("Please tell me whether this film is good or bad")


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return open_sentence_encoder(str(ENCODER))


@pytest.mark.parametrize(("similarity", "cosine"), [(1, 1), (0.5, 0), (0, -1), (2 / 3, 0.5), (0.840845057, 0.877583)])
def test_angular_similarity_by_hand(similarity, cosine):
    assert cosine_at_angular_similarity(similarity) == pytest.approx(cosine, abs=1e-6)


@given(st.floats(0, 1))
def test_angular_similarity_is_one_less_the_angle_over_pi(similarity):
    cosine = cosine_at_angular_similarity(similarity)
    assert 1 - math.acos(cosine) / math.pi == pytest.approx(similarity, abs=1e-6)


def test_texts_of_like_meaning_are_nearer_than_others(encoder):
    same, like, other = encoder.cosines(
        [("The film is good.", text) for text in ("The film is good.", "The movie is great.", "He eats a pear.")]
    )
    assert same == pytest.approx(1, abs=1e-5)
    assert 0.7 < like < 0.95
    assert other < 0.3


def test_the_same_pair_has_the_same_cosine_beside_other_texts(encoder):
    pair = ("One text", "another text, of more words")
    alone = SentenceEncoder(str(ENCODER)).cosines([pair])
    beside = encoder.cosines([("x " * n, "y " * n) for n in range(1, 40)] + [pair])[-1:]
    np.testing.assert_allclose(alone, beside, atol=1e-5)
    np.testing.assert_allclose(encoder.cosines([pair[::-1]]), beside, atol=1e-6)


def test_no_pairs_have_no_cosines(encoder):
    assert encoder.cosines([]).shape == (0,)


def test_a_candidate_is_held_to_the_clean_prompt_and_not_to_the_current_one(encoder):
    current = CLEAN.replace(5, "sausage")
    candidates = [current.replace(0, "Kindly"), current.replace(7, "rancid")]
    pairs = [(CLEAN.text, each.text) for each in candidates]
    limit = float(encoder.cosines(pairs).max())
    assert list(similar_to_clean(encoder, limit)(CLEAN, current, candidates)) == [
        cosine >= limit for cosine in encoder.cosines(pairs)
    ]
    assert list(similar_to_clean(encoder, -1)(CLEAN, current, candidates)) == [True, True]
    assert list(similar_to_clean(encoder, 0.999)(CLEAN, current, [current, CLEAN])) == [False, True]


def test_windows_stand_around_the_word_and_within_the_prompt():
    words = [f"w{n}" for n in range(20)]
    prompt = PromptWords.of(f"({', '.join(words)}.)")
    for index in range(20):
        text = window(prompt, index, 5)
        cut = [words.index(word) for word in text.split(", ")]
        assert len(cut) == 5 and index in cut  # from a word's start to a word's end
    assert window(prompt, 0, 5) == window(prompt, 2, 5) == "w0, w1, w2, w3, w4"
    assert window(prompt, 3, 5) == "w1, w2, w3, w4, w5"
    assert window(prompt, 17, 5) == window(prompt, 19, 5) == "w15, w16, w17, w18, w19"
    assert window(prompt, 3, 25) == ", ".join(words)


def test_around_a_change_only_its_window_counts_and_that_of_the_current_prompt(encoder):
    holds = similar_around_change(encoder, 0.85, 5)
    far = CLEAN.replace(8, "cheese").replace(5, "sausage")  # changed before, and far from the first word
    near = far.replace(0, "Kindly")
    assert list(holds(CLEAN, far, [near])) == [
        bool(encoder.cosines([("Please tell me whether this", "Kindly tell me whether this")])[0] >= 0.85)
    ]
    pair = (window(far, 3, 5), window(far.replace(3, "porridge"), 3, 5))
    limit = float(encoder.cosines([pair])[0])
    candidates = [far.replace(3, "porridge")]
    assert list(similar_around_change(encoder, limit - 1e-4, 5)(CLEAN, far, candidates)) == [True]
    assert list(similar_around_change(encoder, limit + 1e-4, 5)(CLEAN, far, candidates)) == [False]


def test_a_candidate_shorter_than_the_window_is_not_judged(encoder):
    candidates = [CLEAN.replace(5, new) for new in ("sausage", "a very long and boring sausage of pork")]
    assert len(candidates[0].words) == 10 and len(candidates[1].words) == 17
    assert list(similar_around_change(encoder, 0.999, 11)(CLEAN, CLEAN, candidates)) == [True, False]


def test_of_two_constraints_both_must_hold_and_the_second_sees_what_is_left():
    seen = []

    def short(clean, current, candidates):
        return [len(each.text) < 5 for each in candidates]

    def with_a(clean, current, candidates):
        seen.extend(each.text for each in candidates)
        return ["a" in each.text for each in candidates]

    candidates = [PromptWords.of(text) for text in ("a long one", "a", "b", "ba")]
    assert list(both(short, with_a)(CLEAN, CLEAN, candidates)) == [False, True, False, True]
    assert seen == ["a", "b", "ba"]


def test_an_encoder_that_is_not_there_or_broken_is_told_in_one_line(tmp_path):
    with pytest.raises(MissingPart, match=r"--sentence_encoder .*all-MiniLM-L6-v2") as missing:
        open_sentence_encoder(str(tmp_path / "none"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="--sentence_encoder") as broken:
        open_sentence_encoder(str(tmp_path))
    assert not isinstance(broken.value, MissingPart)
    assert "\n" not in str(missing.value) + str(broken.value)
