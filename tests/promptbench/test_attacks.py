"""Each attack's candidates, on recorded words and by hand."""

import importlib
import re
import string
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptbench.attack import AttackParts, WordAttack
from promptbench.attacks import bertattack, checklist, deepwordbug, stresstest, textbugger, textfooler
from promptbench.extra_models import open_sentence_encoder, part_of_speech, window
from promptbench.letter_edits import edit_distance, with_homoglyphs
from promptbench.prompt_words import PromptWords
from promptbench.run_attacks import ATTACK_NAMES
from promptbench.search import search
from tests.promptbench.attack_parts import ENCODER, word_piece_tokenizer, write_mask_lm, write_vectors
from tests.promptbench.support import PROMPT, PROTECTED, TASK, Model, golden
from utils.errors import UserError

LONG_PROMPT = (
    "Please determine whether the following sentence sounds 'good' or 'bad'.\nText:{content}\n"
    "Answer the difficult question with 'good' or 'bad'."
)
CLEAN = PromptWords.of(LONG_PROMPT)
MODIFIABLE = CLEAN.modifiable(PROTECTED)
INDEX_OF = {word: index for index, word in enumerate(CLEAN.words)}

# Words near another one on a circle, with their angles in degrees.
NEAR = {
    "determine": {"decide": 5, "decision": 10, "happy": 15, "establish": 20, "find": 25, "cheese": 50, "shout": 54},
    "sentence": {"phrase": 5, "text": 10, "pretty": 15, "line": 20},
    "difficult": {"hard": 5, "tough": 10, "hardship": 15},
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> AttackParts:
    folder = tmp_path_factory.mktemp("parts")
    vectors = {}
    for number, (word, near) in enumerate(NEAR.items()):
        for other, degrees in {word: 0, **near}.items():
            direction = complex(0, 1) ** (degrees / 90)
            vectors[other] = [0.0] * 2 * number + [direction.real, direction.imag] + [0.0] * 2 * (2 - number)
    words = [word.lower() for word in CLEAN.words] + [other for near in NEAR.values() for other in near] + ["##s"]
    guesses = {"determine": ["decide", "##s", "determine", "find", "cheese", "[SEP]"], "sentence": ["phrase", "cheese"]}
    mask_lm = write_mask_lm(folder / "mask_lm", word_piece_tokenizer(list(dict.fromkeys(words))), guesses)
    return AttackParts(TASK, 3, str(mask_lm), str(ENCODER), write_vectors(folder / "vectors.txt", vectors))


def open_attack(name: str, parts: AttackParts):
    return importlib.import_module(f"promptbench.attacks.{name}").open_attack(parts)


def seeded(seed: int) -> AttackParts:
    return AttackParts(TASK, seed)


# Every attack


@pytest.mark.parametrize("name", ATTACK_NAMES)
def test_a_model_that_ignores_the_prompt_loses_nothing(name, parts):
    result = search(open_attack(name, parts), LONG_PROMPT, PROTECTED, lambda prompts: [0.75] * len(prompts), 60)
    assert result.performance_drop_rate == 0 and result.number_of_queries > 1


@pytest.mark.parametrize("name", ["deepwordbug", "textbugger", "textfooler", "bertattack"])
def test_no_label_placeholder_or_stop_word_changes_and_no_word_twice(name, parts):
    """A model that notices every changed letter lets the attack go as far as it may."""
    model = Model(lambda prompt: sum(word in prompt for word in CLEAN.words) / len(CLEAN.words))
    result = search(open_attack(name, parts), LONG_PROMPT, PROTECTED, model.score)
    assert result.final_accuracy < 1 and result.changed_places
    for prompt in model.prompts:
        assert prompt.count("{content}") == 1
        assert prompt.count("'good' or 'bad'.") == 2
        assert " the " in prompt and " with " in prompt and " or " in prompt
    assert len(model.prompts) == len(set(model.prompts)) == result.number_of_queries
    assert {step.index for step in result.steps} == set(MODIFIABLE)


@pytest.mark.parametrize(
    ("name", "deletes"), [("deepwordbug", False), ("bertattack", False), ("textbugger", True), ("textfooler", True)]
)
def test_words_are_ranked_by_deletion_or_by_unk(name, deletes, parts):
    model = Model(lambda prompt: 0.5)
    search(open_attack(name, parts), LONG_PROMPT, PROTECTED, model.score, query_budget=len(MODIFIABLE) + 1)
    without = [(CLEAN.delete(index) if deletes else CLEAN.replace(index, "[UNK]")).text for index in MODIFIABLE]
    assert model.calls[0] == [LONG_PROMPT, *without]


@pytest.mark.parametrize("name", ["stresstest", "checklist", "semantic"])
def test_whole_prompt_attacks_score_everything_in_one_call(name, parts):
    model = Model(lambda prompt: 0.5)
    result = search(open_attack(name, parts), PROMPT, PROTECTED, model.score)
    assert [len(call) for call in model.calls] == [result.number_of_queries]
    assert result.number_of_queries == {"stresstest": 4, "checklist": 51, "semantic": 2}[name]


# checklist, stresstest, semantic


def strings(seed: int, prompt: str = PROMPT) -> list[str]:
    """The insertion after the last word in each candidate of checklist."""
    clean = PromptWords.of(prompt)
    end = clean.places[-1][1]
    candidates = checklist.open_attack(seeded(seed)).prompts(clean)
    assert all(each.startswith(prompt[:end]) and each.endswith(prompt[end:]) for each in candidates)
    return [candidate[end : len(candidate) - len(prompt) + end] for candidate in candidates]


def test_recorded_suffixes_have_the_same_place_number_and_length():
    for record in golden("suffix", "prompts"):
        clean = PromptWords.of(record["text"])
        assert (clean.words[-1], clean.places[-1][1]) == (record["last_word"], record["inserted_at"])
        assert stresstest.with_suffixes(clean) == record["stresstest_asked_in_order"]
        example = record["checklist_example"]
        assert clean.insert_after(len(clean.words) - 1, example["string"]).text == example["result"]
        drawn = strings(0, record["text"])
        assert len(set(drawn)) == record["checklist_candidates"]
        assert {len(each) for each in drawn} == {len(example["inserted"])}


def test_checklist_draws_letters_and_digits_from_the_seed():
    drawn = strings(seed=3)
    assert len(set(drawn)) == 50 and all(re.fullmatch(" [A-Za-z0-9]{10}", each) for each in drawn)
    used = set("".join(drawn))
    assert all(used & set(kind) for kind in (string.ascii_lowercase, string.ascii_uppercase, string.digits))
    assert drawn == strings(seed=3) and set(drawn).isdisjoint(strings(seed=4))


def test_a_suffix_that_would_break_the_placeholder_is_refused():
    with pytest.raises(UserError, match="add a word after it to the prompt"):
        search(stresstest.open_attack(None), "Text: {content}", PROTECTED, Model(lambda prompt: 1.0).score)


# deepwordbug

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


def test_each_kind_of_mistyping_makes_exactly_the_recorded_words():
    for record in golden("deepwordbug", "words"):
        prompt = PromptWords.of(record["text"])
        assert prompt.words == (record["word"],)
        possible = all_mistypings(record["word"]) if len(record["word"]) > 1 else {kind: set() for kind in KINDS}
        for kind in KINDS:
            recorded = record["transformations"][kind]
            assert recorded["closed"]
            assert {prompt.replace(0, each).text for each in possible[kind]} == set(recorded["candidates"]), kind


def test_the_number_of_candidates_is_as_recorded():
    for record in golden("deepwordbug", "words"):
        numbers = {len(set(deepwordbug.mistype(record["word"], Random(seed)))) for seed in range(500)}
        assert {str(number) for number in numbers} <= set(record["all_four_per_call"]), record["word"]
        assert str(max(numbers)) == max(record["all_four_per_call"]), record["word"]


def test_places_and_letters_are_drawn_uniformly():
    swaps, places, letters = Counter(), Counter(), Counter()
    for seed in range(5200):
        swapped, *_, deleted, inserted = deepwordbug.mistype("1234", Random(seed))
        swaps[swapped] += 1
        places[deleted] += 1
        letters[next(letter for letter in inserted if letter.isalpha())] += 1
    # Expected number and five standard deviations.
    for counts, values, expected, tolerance in (
        (swaps, ("2134", "1324", "1243"), 1733, 170),
        (places, ("234", "134", "124", "123"), 1300, 160),
        (letters, string.ascii_letters, 100, 50),
    ):
        assert set(counts) == set(values)
        assert all(abs(number - expected) < tolerance for number in counts.values())


@given(st.text(alphabet="abcXYZ019'-\u0435\u00e9", min_size=1), st.integers(0, 2**32))
def test_a_mistyped_word_is_one_slip_away(word, seed):
    for candidate in deepwordbug.mistype(word, Random(seed)):
        is_swapped = len(candidate) == len(word) and sorted(candidate) == sorted(word)
        assert edit_distance(word, candidate) == 1 or (is_swapped and edit_distance(word, candidate) == 2)


def test_draws_depend_only_on_seed_prompt_and_place():
    first, second = (deepwordbug.open_attack(seeded(5)) for _ in range(2))
    clean = PromptWords.of("sentiment sentiment")
    backwards = [second.substitutes(clean, index) for index in (1, 0)][::-1]
    forwards = [first.substitutes(clean, index) for index in (0, 1)]
    assert forwards == backwards and forwards[0] != forwards[1]
    assert forwards[0] != first.substitutes(PromptWords.of("sentiment sentiments"), 0)
    assert forwards[0] != deepwordbug.open_attack(seeded(6)).substitutes(clean, 0)


@pytest.mark.parametrize("seed", range(3))
def test_deepwordbug_stops_at_thirty_edits(seed):
    clean = "Wonderful acting, remarkable melodrama, overwhelming music of great entertainment: " * 2 + PROMPT
    model = Model(lambda prompt: 1 - edit_distance(clean, prompt) / 1000)
    result = search(deepwordbug.open_attack(seeded(seed)), clean, PROTECTED, model.score)
    assert 25 < edit_distance(clean, result.final_prompt) <= 30
    assert any(step.refused for step in result.steps)
    assert all(edit_distance(clean, each.prompt) <= 30 for step in result.steps for each in step.candidates)


# textbugger, textfooler, bertattack


def inner_slips(word: str) -> dict[str, set[str]]:
    """Everything that the rule allows between the first letter and the last."""
    inner = range(1, len(word) - 1)
    return {
        "space": {f"{word[:i]} {word[i:]}" for i in inner},
        "delete": {word[:i] + word[i + 1 :] for i in inner} - {word},
        "swap": {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in inner[:-1]} - {word},
    }


@pytest.mark.parametrize(
    ("word", "slips"),
    [
        ("a", set()),
        ("ab", set()),
        ("abc", {"a bc", "ac"}),
        ("abcd", {"a bcd", "ab cd", "acd", "abd", "acbd"}),
        ("abbd", {"a bbd", "ab bd", "abd"}),
    ],
)
def test_textbuggers_slips_by_hand(word, slips):
    assert {each for seed in range(100) for each in textbugger.slip(word, Random(seed))} == slips


def test_textbugger_tries_slips_homoglyphs_and_the_five_nearest_words(parts):
    attack = textbugger.open_attack(parts)
    candidates = attack.substitutes(CLEAN, INDEX_OF["determine"])
    kinds = inner_slips("determine").values()
    assert all(each in possible for each, possible in zip(candidates[:3], kinds, strict=True))
    assert candidates[3:] == [*with_homoglyphs("determine"), "decide", "decision", "happy", "establish", "find"]
    assert attack.substitutes(CLEAN, INDEX_OF["determine"]) == candidates


def test_textfooler_tries_words_with_a_cosine_of_at_least_six_tenths(parts):
    attack = textfooler.open_attack(parts)
    near = ["decide", "decision", "happy", "establish", "find", "cheese"]  # cos 50 degrees is 0.64, cos 54 is 0.59
    assert attack.substitutes(CLEAN, INDEX_OF["determine"]) == near
    assert attack.substitutes(CLEAN, INDEX_OF["Answer"]) == []
    assert attack.substitutes(PromptWords.of("Sentence"), 0) == ["Phrase", "Text", "Pretty", "Line"]


def test_bertattack_tries_whole_words_among_the_first_guesses(parts):
    candidates = bertattack.open_attack(parts).substitutes(CLEAN, INDEX_OF["determine"])
    assert candidates[:3] == ["decide", "find", "cheese"]
    assert not {"determine", "##s", "[SEP]"} & set(candidates) and len(candidates) <= 48


@pytest.mark.parametrize(("module", "least"), [(textbugger, 0.8090170), (bertattack, 0.8)])
def test_textbugger_and_bertattack_stay_close_to_the_clean_prompt(module, least, parts):
    current = CLEAN.replace(INDEX_OF["Answer"], "Cheese cheese cheese, onions: eat")
    new_words = ("decide", "cook an omelette of eggs", "eat")
    candidates = [current.replace(INDEX_OF["determine"], new) for new in new_words]
    cosines = open_sentence_encoder(str(ENCODER)).cosines([(CLEAN.text, each.text) for each in candidates])
    attack: WordAttack = module.open_attack(parts)
    assert list(attack.holds(CLEAN, current, candidates)) == [cosine >= least for cosine in cosines]


def test_textfooler_keeps_part_of_speech_and_the_window_of_the_current_prompt(parts):
    index = INDEX_OF["determine"]
    current = CLEAN.replace(INDEX_OF["difficult"], "cheese")
    candidates = [current.replace(index, new) for new in ("decide", "decision", "happy", "establish", "cheese", "a b")]
    held = textfooler.open_attack(parts).holds(CLEAN, current, candidates)
    encoder = open_sentence_encoder(str(ENCODER))
    for candidate, holds in zip(candidates, held, strict=True):
        (cosine,) = encoder.cosines([(window(current, index, 15), window(candidate, index, 15))])
        part = part_of_speech(CLEAN.words[:index], candidate.words[index], CLEAN.words[index + 1 : index + 4])
        assert holds == (cosine >= 0.877583 and part in ("verb", "noun") and len(candidate.words) == len(CLEAN.words))
    assert held[0] and not held[2] and not held[5]
