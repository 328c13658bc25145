"""TextBugger, BERT-Attack and TextFooler: what they may make of a prompt, with a real sentence encoder."""

import string
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptbench import attacks
from promptbench.attack import AttackParts, WordAttack
from promptbench.attacks import bertattack, textbugger, textfooler
from promptbench.homoglyphs import with_homoglyphs
from promptbench.parts_of_speech import part_of_speech
from promptbench.prompt_task import PromptTask
from promptbench.prompt_words import PromptWords
from promptbench.run_attacks import ATTACK_NAMES, parts_of_attack
from promptbench.search import search
from promptbench.sentence_similarity import open_sentence_encoder, window
from tests.promptbench.attack_parts import ENCODER, word_piece_tokenizer, write_mask_lm, write_vectors

PROMPT = (
    "Please determine whether the following sentence sounds 'good' or 'bad'.\nText:{content}\n"
    "Answer the difficult question with 'good' or 'bad'."
)
TASK = PromptTask("made_up", PROMPT, {"good": 1, "bad": 0}, ("{content}: good or bad?",), lambda data_dir: [])
CLEAN = PromptWords.of(PROMPT)
MODIFIABLE = CLEAN.modifiable(TASK.protected_words)

# On a circle: near to one word, and at which angle.
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
    mask_lm = write_mask_lm(
        folder / "mask_lm",
        word_piece_tokenizer(list(dict.fromkeys(words))),
        {"determine": ["decide", "##s", "determine", "find", "cheese", "[SEP]"], "sentence": ["phrase", "cheese"]},
    )
    return AttackParts(TASK, 3, str(mask_lm), str(ENCODER), write_vectors(folder / "vectors.txt", vectors))


def opened(module, parts: AttackParts) -> WordAttack:
    return module.open_attack(parts)


def place_of(word: str) -> int:
    return CLEAN.words.index(word)


def inner_slips(word: str) -> dict[str, set[str]]:
    """All that the rule allows, by hand: between the first letter and the last."""
    inner = range(1, len(word) - 1)
    return {
        "space": {f"{word[:i]} {word[i:]}" for i in inner},
        "delete": {word[:i] + word[i + 1 :] for i in inner} - {word},
        "swap": {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in inner[:-1]} - {word},
    }


@pytest.mark.parametrize(
    ("word", "space", "delete", "swap"),
    [
        ("a", set(), set(), set()),
        ("ab", set(), set(), set()),
        ("abc", {"a bc"}, {"ac"}, set()),
        ("abcd", {"a bcd", "ab cd"}, {"acd", "abd"}, {"acbd"}),
        ("abbd", {"a bbd", "ab bd"}, {"abd"}, set()),
    ],
)
def test_textbuggers_slips_by_hand(word, space, delete, swap):
    assert inner_slips(word) == {"space": space, "delete": delete, "swap": swap}
    found = {each for seed in range(100) for each in textbugger.slip(word, Random(seed))}
    assert found == space | delete | swap


@given(st.text(alphabet=string.ascii_letters + "'-\u0435", min_size=1), st.integers(0, 2**32))
def test_textbugger_slips_once_each_way_and_never_at_the_first_letter_or_the_last(word, seed):
    slips = textbugger.slip(word, Random(seed))
    kinds = [{kind for kind, possible in inner_slips(word).items() if each in possible} for each in slips]
    assert all(kinds)
    assert len(slips) <= len([kind for kind, possible in inner_slips(word).items() if possible])
    assert all(each[0] == word[0] and each[-1] == word[-1] and each != word for each in slips)


def test_textbugger_tries_slips_homoglyphs_and_the_five_nearest_words(parts):
    index = place_of("determine")
    candidates = opened(textbugger, parts).substitutes(CLEAN, index)
    slips, others = candidates[:3], candidates[3:]
    assert [each in possible for each, possible in zip(slips, inner_slips("determine").values(), strict=True)] == [
        True,
        True,
        True,
    ]
    assert others == [*with_homoglyphs("determine"), "decide", "decision", "happy", "establish", "find"]
    assert opened(textbugger, parts).substitutes(CLEAN, index) == candidates


def test_textfooler_tries_near_words_of_cosine_six_tenths_and_more(parts):
    attack = opened(textfooler, parts)
    near = ["decide", "decision", "happy", "establish", "find", "cheese"]  # cos 50 degrees is 0.64, cos 54 is 0.59
    assert attack.substitutes(CLEAN, place_of("determine")) == near
    assert attack.substitutes(CLEAN, place_of("Answer")) == []
    assert attack.substitutes(PromptWords.of("Sentence"), 0) == ["Phrase", "Text", "Pretty", "Line"]


def test_bertattack_tries_whole_words_of_the_models_first_guesses(parts):
    attack = opened(bertattack, parts)
    candidates = attack.substitutes(CLEAN, place_of("determine"))
    assert candidates[:3] == ["decide", "find", "cheese"]
    assert not {"determine", "##s", "[SEP]"} & set(candidates)
    assert len(candidates) <= 48


@pytest.mark.parametrize(("module", "least"), [(textbugger, 0.8090170), (bertattack, 0.8)])
def test_textbugger_and_bertattack_hold_candidates_to_the_clean_prompt(module, least, parts):
    current = CLEAN.replace(place_of("Answer"), "Cheese cheese cheese, onions: eat")
    candidates = [current.replace(place_of("determine"), new) for new in ("decide", "cook an omelette of eggs", "eat")]
    pairs = [(CLEAN.text, each.text) for each in candidates]
    cosines = open_sentence_encoder(str(ENCODER)).cosines(pairs)
    assert list(opened(module, parts).holds(CLEAN, current, candidates)) == [cosine >= least for cosine in cosines]


def test_textfooler_holds_candidates_to_part_of_speech_and_to_the_window_in_the_current_prompt(parts):
    index = place_of("determine")
    current = CLEAN.replace(place_of("difficult"), "cheese")
    candidates = [current.replace(index, new) for new in ("decide", "decision", "happy", "establish", "cheese", "a b")]
    held = opened(textfooler, parts).holds(CLEAN, current, candidates)
    encoder = open_sentence_encoder(str(ENCODER))
    for candidate, holds in zip(candidates, held, strict=True):
        (cosine,) = encoder.cosines([(window(current, index, 15), window(candidate, index, 15))])
        after = CLEAN.words[index + 1 : index + 4]
        part = part_of_speech(CLEAN.words[:index], candidate.words[index], after)
        assert holds == (cosine >= 0.877583 and part in ("verb", "noun") and len(candidate.words) == len(CLEAN.words))
    assert held[0] and not held[2] and not held[5]


@pytest.mark.parametrize(("module", "first"), [(textbugger, "delete"), (textfooler, "delete"), (bertattack, "[UNK]")])
def test_words_are_ranked_by_deletion_or_by_unk(module, first, parts):
    asked = []

    def score(prompts):
        asked.append(list(prompts))
        return [0.5] * len(prompts)

    search(opened(module, parts), PROMPT, TASK.protected_words, score, query_budget=len(MODIFIABLE) + 1)
    expected = [(CLEAN.delete(i) if first == "delete" else CLEAN.replace(i, "[UNK]")).text for i in MODIFIABLE]
    assert asked[0] == [PROMPT, *expected]


@pytest.mark.parametrize("module", [textbugger, textfooler, bertattack])
def test_no_label_placeholder_or_stop_word_is_touched_and_each_word_changes_once(module, parts):
    """A model that misses every changed letter lets the attack go as far as it may."""
    asked = []

    def score(prompts):
        asked.extend(prompts)
        return [sum(word in prompt for word in CLEAN.words) / len(CLEAN.words) for prompt in prompts]

    result = search(opened(module, parts), PROMPT, TASK.protected_words, score)
    assert result.final_accuracy < 1 and result.changed_places
    for prompt in asked:
        assert prompt.count("{content}") == 1
        assert prompt.count("'good' or 'bad'.") == 2
        assert " the " in prompt and " with " in prompt and " or " in prompt
    assert len(asked) == len(set(asked)) == result.number_of_queries
    assert {step.index for step in result.steps} == set(MODIFIABLE)


def test_a_model_that_ignores_the_prompt_has_a_drop_rate_of_0_under_every_attack(parts):
    assert {"bertattack", "textbugger", "textfooler"} < set(ATTACK_NAMES)
    for name in ATTACK_NAMES:
        attack = __import__(f"{attacks.__name__}.{name}", fromlist=["open_attack"]).open_attack(parts)
        result = search(attack, PROMPT, TASK.protected_words, lambda prompts: [0.75] * len(prompts), 60)
        assert result.performance_drop_rate == 0, name
        assert result.number_of_queries > 1, name


def test_the_parts_that_a_result_depends_on_are_on_record():
    assert set(parts_of_attack("bertattack")) == {"mask_lm", "sentence_encoder"}
    for name in ("textbugger", "textfooler"):
        assert set(parts_of_attack(name)) == {"word_vectors", "sentence_encoder"}
