"""The search: the prompts that it scores, their order, and the result."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptbench.attack import AttackParts, WholePromptAttack, WordAttack
from promptbench.attacks import stresstest
from promptbench.letter_edits import within_edit_distance
from promptbench.prompt_words import PromptWords
from promptbench.search import SearchResult, SearchStep, search
from tests.promptbench.support import PROMPT, PROTECTED, TASK, Model, golden
from utils.errors import UserError

PARTS = AttackParts(TASK, seed=0)
NOTHING: frozenset[str] = frozenset()


def checksum(prompt: str, modulus: int = 997) -> float:
    return sum(place * ord(character) for place, character in enumerate(prompt, start=1)) % modulus / modulus


def recorded_accuracy(scoring: dict, clean: str) -> Callable[[str], float]:
    """The made-up accuracy of a record, as the records' own description defines it."""
    if scoring["name"] == "checksum":
        return lambda prompt: checksum(prompt, scoring["modulus"])
    if scoring["name"] == "kept_characters":
        weights = [scoring["factor"] * place % scoring["modulus"] + 1 for place in range(len(clean))]

        def kept_characters(prompt: str) -> float:
            pairs = zip(weights, clean, prompt, strict=False)
            return sum(weight for weight, old, new in pairs if old == new) / sum(weights)

        return kept_characters
    total = sum(map(abs, scoring["weights"].values()))
    return lambda prompt: (total + sum(w for phrase, w in scoring["weights"].items() if phrase in prompt)) / (2 * total)


def reverse(word: str) -> list[str]:
    return [word[::-1]]


def split(word: str) -> list[str]:
    return [f"{word[: len(word) // 2]} {word[len(word) // 2 :]}"] if len(word) > 1 else []


WORD_CHANGES = {
    "reverse": reverse,
    "reverse_and_rotate": lambda word: [*reverse(word), word[-1] + word[:-1]],
    "split": split,
}


def changing(change: Callable[[str], Sequence[str]], rank_by: str = "unk", **constraint) -> WordAttack:
    return WordAttack(rank_by, lambda prompt, index: change(prompt.words[index]), **constraint)


def as_recorded(step: SearchStep) -> dict:
    step = asdict(step)
    step["refused_edit_distance"], step["not_asked_budget"] = list(step.pop("refused")), list(step.pop("not_asked"))
    return {**step, "candidates": list(step["candidates"])}


def run_record(record: dict) -> tuple[SearchResult, Model]:
    model = Model(recorded_accuracy(record["scoring"], record["prompt"]))
    if record.get("attack") == "stresstest":
        attack = stresstest.open_attack(PARTS)
    else:
        limit = record.get("max_edit_distance")
        constraint = {} if limit is None else {"holds": within_edit_distance(limit)}
        attack = changing(WORD_CHANGES[record["transformation"]], record["ranking"], **constraint)
    protected = frozenset(record["protected_words"])
    return search(attack, record["prompt"], protected, model.score, record.get("query_budget")), model


def records(whole_prompt: bool) -> list[dict]:
    cases = golden("search", "cases")
    chosen = [case for case in cases if not case.get("informative_only") and ("attack" in case) == whole_prompt]
    assert chosen
    return chosen


def test_recorded_searches_over_words_are_reproduced():
    empty = {"refused_edit_distance": [], "not_asked_budget": []}
    for record in records(whole_prompt=False):
        result, model = run_record(record)
        expected = record["expected"]
        assert result.clean_accuracy == expected["clean_accuracy"]
        assert [vars(word) for word in result.ranking] == expected["ranking"], record["name"]
        assert [as_recorded(step) for step in result.steps] == [{**empty, **step} for step in expected["steps"]]
        assert [step.index for step in result.steps] == expected["importance_order"][: len(result.steps)]
        assert (result.final_prompt, result.final_accuracy) == (expected["final_prompt"], expected["final_accuracy"])
        assert result.number_of_queries == len(model.prompts) == expected["number_of_queries"]


def test_recorded_stresstests_are_reproduced():
    for record in records(whole_prompt=True):
        result, model = run_record(record)
        expected = record["expected"]
        queries = [(each["prompt"], each["accuracy"]) for each in expected["queries"]]
        assert model.calls == [[record["prompt"], *(prompt for prompt, _ in queries)]]
        assert [(each.prompt, each.accuracy) for each in result.steps[0].candidates] == queries
        assert (result.final_prompt, result.final_accuracy) == (expected["final_prompt"], expected["final_accuracy"])
        assert (result.clean_accuracy, result.number_of_queries) == (expected["clean_accuracy"], 4)


def test_a_search_by_hand():
    """Without "red" the accuracy falls most, so it goes first. Without "Eat" it falls too, but not with "taE"."""
    model = Model(lambda prompt: (4 * ("red" in prompt) + 2 * ("apple" in prompt) + ("E" in prompt) + 1) / 8)
    result = search(changing(reverse), "Eat a red apple, now", frozenset({"apple"}), model.score)
    assert model.calls == [
        ["Eat a red apple, now", "[UNK] a red apple, now", "Eat a [UNK] apple, now"],
        ["Eat a der apple, now"],
        ["taE a der apple, now"],
    ]
    assert [(word.word, word.drop) for word in result.ranking] == [("Eat", 1 / 8), ("red", 4 / 8)]
    assert [(step.word, step.accepted) for step in result.steps] == [("red", True), ("Eat", False)]
    assert result.final_prompt == "Eat a der apple, now"
    assert (result.clean_accuracy, result.final_accuracy, result.performance_drop_rate) == (1.0, 0.5, 0.5)
    assert [result.final_prompt[start:end] for start, end in result.changed_places] == ["der"]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 20), min_size=4, max_size=4), min_size=4, max_size=4), st.booleans())
def test_with_independent_words_it_finds_what_exhaustive_search_finds(weights, by_deletion):
    """Four words with three candidates each: the sum of 4 numbers is least where each is least, in any order."""
    words = ("alpha", "beta", "gamma", "delta")
    weight = {
        f"{word}{ending}": number
        for word, row in zip(words, weights, strict=True)
        for ending, number in zip(("", "x", "y", "z"), row, strict=True)
    }
    attack = changing(lambda word: [word + ending for ending in "xyz"], "delete" if by_deletion else "unk")
    model = Model(lambda prompt: sum(weight.get(word, 10) for word in PromptWords.of(prompt).words) / 100)
    result = search(attack, " ".join(words), NOTHING, model.score)
    endings = product(("", "x", "y", "z"), repeat=4)
    everything = [" ".join(word + ending for word, ending in zip(words, row, strict=True)) for row in endings]
    assert result.final_accuracy == min(map(model.accuracy, everything))


@settings(deadline=None)
@given(st.integers(2, 2000), st.sampled_from(sorted(WORD_CHANGES)), st.sampled_from(["unk", "delete"]))
def test_the_result_is_the_worst_of_all_prompts_tried(modulus, change, rank_by):
    model = Model(lambda prompt: checksum(prompt, modulus))
    result = search(changing(WORD_CHANGES[change], rank_by), PROMPT, PROTECTED, model.score)
    tried = [candidate.accuracy for step in result.steps for candidate in step.candidates]
    assert result.final_accuracy == min([result.clean_accuracy, *tried]) == model.accuracy(result.final_prompt)
    assert len(model.prompts) == len(set(model.prompts)) == result.number_of_queries
    assert all(prompt.count("{content}") == 1 and prompt.count("'good' or 'bad'.") == 2 for prompt in model.prompts)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(2, 2000))
def test_a_budget_cuts_the_same_search_short(budget, modulus):
    attack = changing(WORD_CHANGES["reverse_and_rotate"])
    free, limited = (Model(lambda prompt: checksum(prompt, modulus)) for _ in range(2))
    search(attack, PROMPT, PROTECTED, free.score)
    result = search(attack, PROMPT, PROTECTED, limited.score, budget)
    assert result.number_of_queries == len(limited.prompts) == min(budget, len(free.prompts))
    if budget > len(result.ranking) + 1:  # with only part of the ranking, another word is the first
        assert limited.prompts == free.prompts[:budget]


def test_a_budget_of_one_scores_only_the_clean_prompt_and_zero_is_refused():
    for attack in (changing(reverse), WholePromptAttack(lambda clean: ["x {content}"])):
        model = Model(checksum)
        assert search(attack, PROMPT, PROTECTED, model.score, query_budget=1).final_prompt == PROMPT
        assert model.calls == [[PROMPT]]
        with pytest.raises(UserError, match="budget of 0"):
            search(attack, PROMPT, PROTECTED, model.score, query_budget=0)


def test_ties_go_to_the_first_candidate_by_code_points_and_the_first_word():
    attack = changing(lambda word: [f"{word}b", f"{word}B", f"{word}a"])
    result = search(attack, "one two", NOTHING, Model(lambda prompt: float(prompt == "one two")).score)
    assert result.final_prompt == "oneB two"
    assert [step.word for step in result.steps] == ["one", "two"]


@pytest.mark.parametrize("others", [0.4, 0.9])
def test_a_change_that_does_not_lower_the_accuracy_is_not_made(others):
    model = Model(lambda prompt: 0.4 if prompt == "one two" else others)
    result = search(changing(reverse), "one two", NOTHING, model.score)
    assert (result.final_prompt, result.final_accuracy, result.changed_places) == ("one two", 0.4, ())


def test_the_drop_rate_of_a_model_that_is_never_right_is_undefined():
    assert search(changing(reverse), "one two", NOTHING, Model(lambda prompt: 0.0).score).performance_drop_rate is None


def test_words_keep_their_index_after_earlier_words_split():
    clean = "silver golden copper"
    model = Model(lambda prompt: 1 - 0.1 * len(PromptWords.of(prompt).words) - 0.01 * prompt.count("[UNK] "))
    result = search(changing(split), clean, NOTHING, model.score)
    assert [step.word for step in result.steps] == ["silver", "golden", "copper"]
    assert result.final_prompt == "sil ver gol den cop per"
    assert [result.final_prompt[start:end] for start, end in result.changed_places] == result.final_prompt.split()
    assert model.prompts[4:] == ["sil ver golden copper", "sil ver gol den copper", "sil ver gol den cop per"]


def test_candidates_that_break_placeholder_or_constraint_are_never_scored():
    def far(clean, current, candidates):
        return ["far" not in candidate.text for candidate in candidates]

    attack = changing(lambda word: [f"{word}far", f"{{content}} {word}", f"{word}near", word], holds=far)
    model = Model(lambda prompt: 1 / len(prompt))
    result = search(attack, "Judge: {content} now", frozenset({"content"}), model.score)
    assert result.final_prompt == "Judgenear: {content} now"
    assert [candidate.prompt for candidate in result.steps[0].candidates] == ["Judgenear: {content} now"]
    assert result.steps[0].refused == ("Judgefar: {content} now", "{content} Judge: {content} now")
    assert not any("far" in prompt or prompt.count("{content}") != 1 for prompt in model.prompts)


def test_the_constraint_sees_clean_prompt_current_prompt_and_all_candidates():
    seen = []

    def holds(clean, current, candidates):
        seen.append((clean.text, current.text, [candidate.text for candidate in candidates]))
        return [True] * len(candidates)

    model = Model(lambda prompt: 0.5 if "[UNK]" in prompt else 1 / (1 + prompt.count("X")))
    search(changing(lambda word: ["X", "Y"], holds=holds), "one two", NOTHING, model.score)
    assert seen == [("one two", "one two", ["X two", "Y two"]), ("one two", "X two", ["X X", "X Y"])]


def test_a_whole_prompt_attack_takes_the_lowest_even_above_the_clean_one():
    attack = WholePromptAttack(lambda clean: ["One more two three", "one two five"])
    accuracies = {"one two three": 0.4, "One more two three": 0.5, "one two five": 0.6}
    result = search(attack, "one two three", NOTHING, Model(accuracies.__getitem__).score)
    assert (result.final_prompt, result.final_accuracy) == ("One more two three", 0.5)
    assert result.performance_drop_rate == pytest.approx(-0.25)
    assert [result.final_prompt[start:end] for start, end in result.changed_places] == ["One", "more"]


def test_words_ranked_with_the_same_prompt_share_one_query():
    model = Model(checksum)
    result = search(changing(reverse, "delete"), "stop stop go.", NOTHING, model.score)
    assert model.calls[0] == ["stop stop go.", "stop go.", "stop stop."]
    assert [word.index for word in result.ranking] == [0, 1, 2]
