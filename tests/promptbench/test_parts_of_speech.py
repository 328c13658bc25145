"""Parts of speech in context, by the real tagger."""

import pytest

from promptbench.parts_of_speech import part_of_speech, same_part_of_speech
from promptbench.prompt_words import PromptWords


@pytest.mark.parametrize(
    ("text", "index", "part"),
    [
        ("the small dog barks loudly", 1, "adjective"),
        ("the small dog barks loudly", 2, "noun"),
        ("the small dog barks loudly", 3, "verb"),
        ("the small dog barks loudly", 4, "adverb"),
        ("you and me", 1, "conjunction"),
        ("with seven of them", 0, "adposition"),
        ("with seven of them", 1, "numeral"),
        ("Please answer him", 2, "pronoun"),
        ("they did not ask", 2, "adverb"),
        ("ask them to answer", 2, "particle"),
    ],
)
def test_parts_of_speech_of_plain_words(text, index, part):
    words = PromptWords.of(text).words
    assert part_of_speech(words[:index], words[index], words[index + 1 :]) == part


def test_the_words_around_decide():
    assert part_of_speech(("they", "want", "to"), "play", ("chess",)) == "verb"
    assert part_of_speech(("this", "is", "a"), "play", ("of",)) == "noun"


def held(text: str, word: str, *new: str) -> list[bool]:
    clean = PromptWords.of(text)
    index = clean.words.index(word)
    return list(same_part_of_speech(clean, clean, [clean.replace(index, each) for each in new]))


def test_a_word_keeps_its_part_of_speech_but_verb_and_noun_may_swap():
    text = "Please determine whether the following sentence is very beautiful"
    assert held(text, "sentence", "phrase", "find", "quickly") == [True, True, False]
    assert held(text, "determine", "decide", "decision", "happy") == [True, True, False]
    assert held(text, "beautiful", "ugly", "beauty") == [True, False]


def test_a_word_for_which_two_come_has_no_part_of_speech_of_its_own():
    assert held("Judge the sentence now", "sentence", "long text") == [False]


def test_the_clean_prompt_is_what_a_word_is_judged_in_and_against():
    clean = PromptWords.of("they want to play chess")
    current = clean.replace(2, "a")  # among the current prompt's words, "play" would be a noun
    assert part_of_speech(("they", "want", "a"), "play", ("chess",)) == "noun"
    candidates = [current.replace(3, new) for new in ("see", "nicely")]
    assert list(same_part_of_speech(clean, current, candidates)) == [True, False]
