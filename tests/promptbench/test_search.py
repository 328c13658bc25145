"""The search: what it asks, in which order, and what it finds."""

from collections.abc import Callable, Sequence
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptbench.attack import AttackParts, WholePromptAttack, WordAttack
from promptbench.attacks import checklist, deepwordbug, semantic, stresstest
from promptbench.edit_distance import within_edit_distance
from promptbench.prompt_task import PromptTask
from promptbench.prompt_words import PromptWords
from promptbench.search import SearchResult, SearchStep, search
from tests.promptbench.golden_attacks import PROMPT, PROTECTED, golden, needs_golden
from utils.errors import UserError

TASK = PromptTask("made_up", PROMPT, {"good": 1, "bad": 0}, ("{content}: good or bad?",), lambda data_dir: [])
PARTS = AttackParts(TASK, seed=0)
NOTHING_PROTECTED: frozenset[str] = frozenset()


class Model:
    """A made-up accuracy for each prompt, and the calls in which they were asked for."""

    def __init__(self, accuracy: Callable[[str], float]):
        self.accuracy = accuracy
        self.calls: list[list[str]] = []

    def score(self, prompts: Sequence[str]) -> list[float]:
        self.calls.append(list(prompts))
        return [self.accuracy(prompt) for prompt in prompts]

    @property
    def asked(self) -> list[str]:
        return [prompt for call in self.calls for prompt in call]


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


def rotate(word: str) -> list[str]:
    return [word[-1] + word[:-1]]


def split(word: str) -> list[str]:
    return [f"{word[: len(word) // 2]} {word[len(word) // 2 :]}"] if len(word) > 1 else []


WORD_CHANGES = {"reverse": reverse, "reverse_and_rotate": lambda word: reverse(word) + rotate(word), "split": split}


def changing(change: Callable[[str], Sequence[str]], rank_by: str = "unk", **constraint) -> WordAttack:
    return WordAttack(rank_by, lambda prompt, index: change(prompt.words[index]), **constraint)


def recorded_step(step: dict) -> SearchStep:
    return SearchStep(
        index=step["index"],
        word=step["word"],
        candidates=tuple((each["prompt"], each["accuracy"]) for each in step["candidates"]),
        refused=tuple(step.get("refused_edit_distance", ())),
        not_asked=tuple(step.get("not_asked_budget", ())),
        accepted=step["accepted"],
        prompt_after=step["prompt_after"],
    )


def as_recorded(step: SearchStep) -> SearchStep:
    pairs = tuple((each.prompt, each.accuracy) for each in step.candidates)
    return SearchStep(**{**vars(step), "candidates": pairs})


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
    return [case for case in cases if not case.get("informative_only") and ("attack" in case) == whole_prompt]


@needs_golden
def test_every_recorded_search_over_words_asks_ranks_and_accepts_as_recorded():
    assert records(whole_prompt=False)
    for record in records(whole_prompt=False):
        result, model = run_record(record)
        expected = record["expected"]
        assert result.clean_accuracy == expected["clean_accuracy"]
        assert [vars(word) for word in result.ranking] == expected["ranking"], record["name"]
        assert [as_recorded(step) for step in result.steps] == [recorded_step(step) for step in expected["steps"]]
        assert [step.index for step in result.steps] == expected["importance_order"][: len(result.steps)]
        assert (result.final_prompt, result.final_accuracy) == (expected["final_prompt"], expected["final_accuracy"])
        assert result.number_of_queries == len(model.asked) == expected["number_of_queries"]


@needs_golden
def test_every_recorded_stresstest_asks_and_takes_what_was_recorded():
    assert records(whole_prompt=True)
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
def test_where_words_count_one_by_one_the_search_finds_what_exhaustive_search_finds(weights, by_deletion):
    """Four words, each with three candidates: the sum of 4 numbers is least where each is least, in any order."""
    clean = "alpha beta, gamma: delta!"
    words = PromptWords.of(clean).words
    weight = {
        f"{word}{ending}": each
        for word, row in zip(words, weights, strict=True)
        for ending, each in zip(("", "x", "y", "z"), row, strict=True)
    }

    def accuracy(prompt: str) -> float:
        return sum(weight.get(word, 10) for word in PromptWords.of(prompt).words) / 100

    attack = changing(lambda word: [word + ending for ending in "xyz"], "delete" if by_deletion else "unk")
    result = search(attack, clean, NOTHING_PROTECTED, Model(accuracy).score)
    everything = [
        "{}{} {}{}, {}{}: {}{}!".format(*(part for pair in zip(words, endings, strict=True) for part in pair))
        for endings in product(("", "x", "y", "z"), repeat=4)
    ]
    assert result.final_accuracy == min(map(accuracy, everything))


@settings(deadline=None)
@given(st.integers(2, 2000), st.sampled_from(sorted(WORD_CHANGES)), st.sampled_from(["unk", "delete"]))
def test_the_result_is_the_worst_of_all_candidates_and_never_worse_for_the_attacker_than_the_clean_prompt(
    modulus, change, rank_by
):
    model = Model(lambda prompt: checksum(prompt, modulus))
    result = search(changing(WORD_CHANGES[change], rank_by), PROMPT, PROTECTED, model.score)
    tried = [candidate.accuracy for step in result.steps for candidate in step.candidates]
    assert result.final_accuracy == min([result.clean_accuracy, *tried]) == model.accuracy(result.final_prompt)
    assert len(model.asked) == len(set(model.asked)) == result.number_of_queries
    assert all(prompt.count("{content}") == 1 for prompt in model.asked)
    assert all(prompt.count("'good' or 'bad'.") == 2 for prompt in model.asked)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(2, 2000))
def test_a_budget_cuts_the_same_search_short(budget, modulus):
    attack = changing(WORD_CHANGES["reverse_and_rotate"])
    free, limited = (Model(lambda prompt: checksum(prompt, modulus)) for _ in range(2))
    search(attack, TASK.prompt, PROTECTED, free.score)
    result = search(attack, TASK.prompt, PROTECTED, limited.score, budget)
    assert result.number_of_queries == len(limited.asked) == min(budget, len(free.asked))
    if budget > len(result.ranking) + 1:  # with part of the ranking alone, another word is the first
        assert limited.asked == free.asked[:budget]


@pytest.mark.parametrize("attack", [deepwordbug, stresstest, checklist, semantic])
@pytest.mark.parametrize("accuracy", [0.0, 0.5, 1.0])
def test_a_model_that_ignores_the_prompt_loses_nothing(attack, accuracy):
    model = Model(lambda prompt: accuracy)
    result = search(attack.open_attack(PARTS), PROMPT, PROTECTED, model.score)
    assert (result.clean_accuracy, result.final_accuracy) == (accuracy, accuracy)
    assert result.performance_drop_rate == (0 if accuracy else None)
    if attack is deepwordbug:
        assert result.final_prompt == PROMPT
        assert not any(step.accepted for step in result.steps)
        assert result.changed_places == ()
    else:
        assert len(model.calls) == 1


def test_the_clean_prompt_and_the_ranking_are_asked_together_and_then_each_words_candidates():
    model = Model(checksum)
    result = search(deepwordbug.open_attack(PARTS), PROMPT, PROTECTED, model.score)
    assert [word.word for word in result.ranking] == ["Judge", "Text", "Please", "say"]
    assert len(model.calls[0]) == 1 + 4
    candidates = [[candidate.prompt for candidate in step.candidates] for step in result.steps]
    assert model.calls[1:] == candidates
    assert all(prompts == sorted(prompts) for prompts in candidates)


def test_of_equal_candidates_the_first_by_code_points_wins_and_of_equal_words_the_first_in_the_prompt():
    attack = changing(lambda word: [f"{word}b", f"{word}B", f"{word}a"])
    result = search(attack, "one two", NOTHING_PROTECTED, Model(lambda prompt: float(prompt == "one two")).score)
    assert result.final_prompt == "oneB two"
    assert [step.word for step in result.steps] == ["one", "two"]


def test_a_change_that_lowers_nothing_is_not_made_even_at_the_first_word():
    result = search(changing(reverse), "one two", NOTHING_PROTECTED, Model(lambda prompt: 0.5).score)
    assert result.final_prompt == "one two"
    model = Model(lambda prompt: 0.4 if prompt == "one two" else 0.9)
    rising = search(changing(reverse), "one two", NOTHING_PROTECTED, model.score)
    assert (rising.final_prompt, rising.final_accuracy) == ("one two", 0.4)


def test_words_are_found_again_after_words_before_them_were_split():
    clean = "silver golden copper"
    model = Model(lambda prompt: 1 - 0.1 * len(PromptWords.of(prompt).words) - 0.01 * prompt.count("[UNK] "))
    result = search(changing(split), clean, NOTHING_PROTECTED, model.score)
    assert [step.word for step in result.steps] == ["silver", "golden", "copper"]
    assert result.final_prompt == "sil ver gol den cop per"
    assert [result.final_prompt[start:end] for start, end in result.changed_places] == result.final_prompt.split()
    assert model.asked[4:] == ["sil ver golden copper", "sil ver gol den copper", "sil ver gol den cop per"]


@needs_golden
def test_where_the_recorded_search_drifts_to_other_words_ours_stays_with_the_ranked_ones():
    (record,) = [case for case in golden("search", "cases") if case["name"] == "split_drift"]
    result, _ = run_record(record)
    assert [vars(word) for word in result.ranking] == record["expected"]["ranking"]
    assert [step.index for step in result.steps] == record["expected"]["importance_order"]
    for step in result.steps:
        (half,) = split(step.word)
        assert all(half in candidate.prompt for candidate in step.candidates)
        assert len(step.candidates) == 1
    assert result.final_accuracy < record["expected"]["final_accuracy"]


def test_candidates_that_break_the_placeholder_or_the_constraint_are_never_asked():
    def far(clean, current, candidates):
        return ["far" not in candidate.text for candidate in candidates]

    attack = changing(lambda word: [f"{word}far", f"{{content}} {word}", f"{word}near", word], holds=far)
    model = Model(lambda prompt: 1 / len(prompt))
    result = search(attack, "Judge: {content} now", frozenset({"content"}), model.score)
    assert result.final_prompt == "Judgenear: {content} now"
    assert [candidate.prompt for candidate in result.steps[0].candidates] == ["Judgenear: {content} now"]
    assert result.steps[0].refused == ("Judgefar: {content} now", "{content} Judge: {content} now")
    assert not any("far" in prompt or prompt.count("{content}") != 1 for prompt in model.asked)


def test_the_constraint_sees_the_clean_prompt_the_prompt_so_far_and_all_of_a_words_candidates_at_once():
    seen = []

    def holds(clean, current, candidates):
        seen.append((clean.text, current.text, [candidate.text for candidate in candidates]))
        return [True] * len(candidates)

    model = Model(lambda prompt: 0.5 if "[UNK]" in prompt else 1 / (1 + prompt.count("X")))
    search(changing(lambda word: ["X", "Y"], holds=holds), "one two", NOTHING_PROTECTED, model.score)
    assert seen == [("one two", "one two", ["X two", "Y two"]), ("one two", "X two", ["X X", "X Y"])]


def test_a_whole_prompt_attack_takes_the_lowest_even_above_the_clean_one_and_marks_what_is_new():
    attack = WholePromptAttack(lambda clean: ["One more two three", "one two five"])
    accuracies = {"one two three": 0.4, "One more two three": 0.5, "one two five": 0.6}
    result = search(attack, "one two three", NOTHING_PROTECTED, Model(accuracies.__getitem__).score)
    assert (result.final_prompt, result.final_accuracy) == ("One more two three", 0.5)
    assert result.performance_drop_rate == pytest.approx(-0.25)
    assert [result.final_prompt[start:end] for start, end in result.changed_places] == ["One", "more"]


def test_a_budget_of_one_asks_for_the_clean_prompt_alone_and_none_is_refused():
    for attack in (changing(reverse), WholePromptAttack(lambda clean: ["x {content}"])):
        model = Model(checksum)
        assert search(attack, PROMPT, PROTECTED, model.score, query_budget=1).final_prompt == PROMPT
        assert model.calls == [[PROMPT]]
        with pytest.raises(UserError, match="budget of 0"):
            search(attack, PROMPT, PROTECTED, model.score, query_budget=0)


def test_words_that_rank_with_the_same_prompt_share_one_query():
    model = Model(checksum)
    result = search(changing(reverse, "delete"), "stop stop go.", NOTHING_PROTECTED, model.score)
    assert model.calls[0] == ["stop stop go.", "stop go.", "stop stop."]
    assert [word.index for word in result.ranking] == [0, 1, 2]
