"""The words of a prompt: where they are split, which may change, and the rest after a change."""

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from promptbench.prompt_words import STOP_WORDS, PromptWords
from tests.promptbench.support import GOLDEN, PROMPT, PROTECTED, golden

texts = st.text(alphabet="abAB ef9'-_*@.{}:\n\u00e9\u0435\u00d7`", max_size=30)


def test_recorded_prompts_have_the_recorded_words_that_may_be_attacked():
    for record in golden("words", "prompts"):
        prompt = PromptWords.of(record["text"])
        protected = frozenset(record["unmodifiable_words"])
        assert list(prompt.words) == [word["word"] for word in record["words"]]
        assert list(prompt.places) == [(word["start"], word["end"]) for word in record["words"]]
        assert prompt.modifiable(protected) == record["modifiable_indices"]


def test_recorded_texts_have_the_recorded_words_and_stop_words():
    for record in golden("words", "texts"):
        prompt = PromptWords.of(record["text"])
        assert [[word, *place] for word, place in zip(prompt.words, prompt.places, strict=True)] == record["words"]
        stop_words = [index for index, word in enumerate(prompt.words) if word in STOP_WORDS]
        assert stop_words == record["stop_word_indices"]


def test_the_stop_words_are_the_179_before_2025():
    recorded = json.loads((GOLDEN / "words.json").read_text(encoding="utf-8"))
    assert frozenset(recorded["stop_words"]) == STOP_WORDS
    assert STOP_WORDS.isdisjoint(recorded["stop_words_added_in_2025"])


def test_recorded_edits_give_the_recorded_prompts():
    for record in golden("edits", "cases"):
        prompt = PromptWords.of(record["text"])
        if any(edit["op"] == "insert_before" for edit in record["edits"]):
            continue  # no attack inserts there
        for edit in record["edits"]:
            change = getattr(prompt, edit["op"])
            prompt = change(edit["index"], edit["text"]) if "text" in edit else change(edit["index"])
        assert prompt.text == record["result"]
        assert sorted(prompt.changed) == record["changed_indices"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("it's 'quoted' well-known", ["it's", "quoted'", "well-known"]),
        ("-dash @at _low *star", ["dash", "at", "low", "star"]),
        ("-email e-mail e-", ["email", "e-mail", "e-"]),
        ("' - _ * @", []),
        ("\u0455ent\u0456ment", ["\u0455ent\u0456ment"]),  # Cyrillic letters among Latin ones
        ("e\u02d7mail don`t \u00d7", ["e\u02d7mail", "don`t", "\u00d7"]),  # the homoglyphs of - ' x
        ("v2.0 \u0661\u0662 \u00bd", ["v2", "0", "\u0661\u0662", "\u00bd"]),
        ("{content}", ["content"]),
    ],
)
def test_words_are_split_as_expected(text, words):
    assert list(PromptWords.of(text).words) == words


def test_labels_placeholder_stop_words_and_changed_words_are_not_modifiable():
    prompt = PromptWords.of("As THE the GOOD Good' content Content word river")
    assert prompt.modifiable(PROTECTED) == [0, 1, 7, 8]
    assert prompt.replace(7, "w ord").modifiable(PROTECTED) == [0, 1, 9]


def test_a_replacement_by_two_words_moves_later_changed_words():
    prompt = PromptWords.of("one two three four").replace(3, "FOUR").replace(1, "t wo")
    assert prompt.text == "one t wo three FOUR"
    assert prompt.changed == {1, 2, 4}
    assert [sorted(prompt.delete(index).changed) for index in (1, 0, 4)] == [[1, 3], [0, 1, 3], [1, 2]]


def test_a_word_replaced_by_itself_does_not_count_as_changed():
    prompt = PromptWords.of(PROMPT)
    assert prompt.replace(0, "Judge") == prompt


@pytest.mark.parametrize(
    ("text", "index", "left"),
    [
        ("one two three", 0, "two three"),
        ("one two three", 1, "one three"),
        ("one two three.", 2, "one two."),
        ("one two", 1, "one "),
        ("one: two", 0, ": two"),
        ("one\ntwo three", 1, "one\n three"),
    ],
)
def test_deleting_a_word_removes_one_space(text, index, left):
    assert PromptWords.of(text).delete(index).text == left


@given(texts)
def test_words_are_in_order_and_cover_every_letter(text):
    prompt = PromptWords.of(text)
    end_of_last = 0
    for word, (start, end) in zip(prompt.words, prompt.places, strict=True):
        assert text[start:end] == word and word[0] not in "'-_*@"
        assert not any(character.isalnum() for character in text[end_of_last:start])
        end_of_last = end
    assert not any(character.isalnum() for character in text[end_of_last:])


@given(texts, texts, st.data())
def test_a_change_leaves_all_other_words_alone(text, new, data):
    prompt = PromptWords.of(text)
    assume(prompt.words)
    index = data.draw(st.integers(0, len(prompt.words) - 1))
    before, after = prompt.words[:index], prompt.words[index + 1 :]
    assert prompt.delete(index).words == before + after
    new_words = PromptWords.of(new).words
    replaced = prompt.replace(index, new)
    assert replaced.words == before + new_words + after
    if new != prompt.words[index]:
        assert replaced.changed == set(range(index, index + len(new_words)))
