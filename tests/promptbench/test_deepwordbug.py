"""DeepWordBug: one mistyped letter a word."""

import string
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptbench.attack import AttackParts
from promptbench.attacks import deepwordbug
from promptbench.edit_distance import edit_distance
from promptbench.prompt_task import PromptTask
from promptbench.prompt_words import PromptWords
from promptbench.search import search
from tests.promptbench.golden_attacks import PROMPT, PROTECTED, golden, needs_golden

TASK = PromptTask("made_up", PROMPT, {"good": 1, "bad": 0}, (), lambda data_dir: [])
KINDS = ("swap", "substitute", "delete", "insert")


def all_mistypings(word: str) -> dict[str, set[str]]:
    """Everything that each kind can make of a word of two letters or more."""
    places = range(len(word))
    letters = [(place, letter) for place in places for letter in string.ascii_letters]
    return {
        "swap": {deepwordbug.swap_letters(word, place) for place in places[:-1]} - {word},
        "substitute": {deepwordbug.substitute_letter(word, place, letter) for place, letter in letters} - {word},
        "delete": {deepwordbug.delete_letter(word, place) for place in places},
        "insert": {deepwordbug.insert_letter(word, place, letter) for place, letter in letters},
    }


@needs_golden
def test_each_kind_makes_of_every_recorded_word_all_that_was_recorded_and_nothing_else():
    for record in golden("deepwordbug", "words"):
        prompt = PromptWords.of(record["text"])
        assert prompt.words == (record["word"],)
        possible = all_mistypings(record["word"]) if len(record["word"]) > 1 else {kind: set() for kind in KINDS}
        for kind in KINDS:
            recorded = record["transformations"][kind]
            assert recorded["closed"]
            assert {prompt.replace(0, each).text for each in possible[kind]} == set(recorded["candidates"]), kind


@needs_golden
def test_as_many_candidates_come_out_of_a_word_as_were_recorded():
    for record in golden("deepwordbug", "words"):
        numbers = {len(set(deepwordbug.mistype(record["word"], Random(seed)))) for seed in range(500)}
        assert {str(number) for number in numbers} <= set(record["all_four_per_call"]), record["word"]
        assert str(max(numbers)) == max(record["all_four_per_call"]), record["word"]


def test_what_can_come_of_a_word_of_two_letters_by_hand():
    possible = all_mistypings("no")
    assert possible["swap"] == {"on"}
    assert possible["delete"] == {"n", "o"}
    assert {"xo", "nX"} < possible["substitute"]
    assert len(possible["substitute"]) == 2 * 51
    assert {"xno", "nXo"} < possible["insert"]
    assert "nox" not in possible["insert"]  # never at the end


def test_two_equal_neighbours_swapped_and_one_letter_alone_are_no_candidates():
    for seed in range(200):
        assert deepwordbug.mistype("a", Random(seed)) == []
        assert "oo" not in deepwordbug.mistype("oo", Random(seed))
        assert len(deepwordbug.mistype("oo", Random(seed))) <= 3


def test_places_and_letters_are_drawn_evenly():
    swaps, places, letters = Counter(), Counter(), Counter()
    for seed in range(5200):
        swapped, *_, deleted, inserted = deepwordbug.mistype("1234", Random(seed))
        swaps[swapped] += 1
        places[deleted] += 1
        letters[next(letter for letter in inserted if letter.isalpha())] += 1
    assert set(swaps) == {"2134", "1324", "1243"}
    assert all(1733 - 170 < number < 1733 + 170 for number in swaps.values())  # five standard deviations, as below
    assert set(places) == {"234", "134", "124", "123"}
    assert all(1300 - 160 < number < 1300 + 160 for number in places.values())
    assert set(letters) == set(string.ascii_letters)
    assert all(100 - 50 < number < 100 + 50 for number in letters.values())


@given(st.text(alphabet="abcXYZ019'-\u0435\u00e9", min_size=1), st.integers(0, 2**32))
def test_a_candidate_is_one_slip_away_from_its_word(word, seed):
    for candidate in deepwordbug.mistype(word, Random(seed)):
        swapped = len(candidate) == len(word) and sorted(candidate) == sorted(word)
        assert edit_distance(word, candidate) == 1 or (swapped and edit_distance(word, candidate) == 2)


def test_words_are_ranked_by_what_their_replacement_by_unk_costs():
    asked = []

    def score(prompts):
        asked.append(list(prompts))
        return [0.5] * len(prompts)

    search(deepwordbug.open_attack(AttackParts(TASK)), "Judge {content} now please.", PROTECTED, score)
    assert asked[0][1:] == ["[UNK] {content} now please.", "Judge {content} now [UNK]."]


def test_candidates_depend_on_seed_prompt_and_place_and_not_on_what_was_asked_before():
    first, second = (deepwordbug.open_attack(AttackParts(TASK, seed=5)) for _ in range(2))
    clean = PromptWords.of("sentiment sentiment")
    backwards = [second.substitutes(clean, index) for index in (1, 0)][::-1]
    forwards = [first.substitutes(clean, index) for index in (0, 1)]
    assert forwards == backwards
    assert forwards[0] != forwards[1]
    assert forwards[0] != first.substitutes(PromptWords.of("sentiment sentiments"), 0)
    assert forwards[0] != deepwordbug.open_attack(AttackParts(TASK, seed=6)).substitutes(clean, 0)


@pytest.mark.parametrize("seed", range(5))
def test_no_attack_touches_labels_placeholder_or_stop_words_or_goes_thirty_edits_away(seed):
    """A model whose accuracy falls with every edit lets the attack go as far as it may."""
    clean = "Wonderful acting, remarkable melodrama, overwhelming music of great entertainment: " * 2 + PROMPT
    asked = []

    def score(prompts):
        asked.extend(prompts)
        return [1 - edit_distance(clean, prompt) / 1000 for prompt in prompts]

    result = search(deepwordbug.open_attack(AttackParts(TASK, seed)), clean, PROTECTED, score)
    assert 25 < edit_distance(clean, result.final_prompt) <= 30
    assert any(step.refused for step in result.steps)
    for prompt in asked:
        assert prompt.count("{content}") == 1
        assert prompt.count("'good' or 'bad'.") == 2
        assert " of " in prompt
    candidates = [candidate.prompt for step in result.steps for candidate in step.candidates]
    assert all(edit_distance(clean, candidate) <= 30 for candidate in candidates)
