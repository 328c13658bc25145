"""CheckList: random strings behind the last word."""

import re

from promptbench.attack import AttackParts
from promptbench.attacks import checklist
from promptbench.prompt_task import PromptTask
from promptbench.prompt_words import PromptWords
from tests.promptbench.golden_attacks import PROMPT, golden, needs_golden

TASK = PromptTask("made_up", PROMPT, {"good": 1, "bad": 0}, (), lambda data_dir: [])


def strings(seed: int, prompt: str = PROMPT) -> list[str]:
    """What stands between the last word and the end of it all, for each candidate."""
    clean = PromptWords.of(prompt)
    end = clean.places[-1][1]
    candidates = checklist.open_attack(AttackParts(TASK, seed)).prompts(clean)
    for candidate in candidates:
        assert candidate.startswith(prompt[:end])
        assert candidate.endswith(prompt[end:])
    return [candidate[end : len(candidate) - len(prompt) + end] for candidate in candidates]


@needs_golden
def test_strings_stand_where_the_recorded_one_stands_and_are_as_many_and_as_long():
    for record in golden("suffix", "prompts"):
        example = record["checklist_example"]
        clean = PromptWords.of(record["text"])
        assert clean.insert_after(len(clean.words) - 1, example["string"]).text == example["result"]
        drawn = strings(0, record["text"])
        assert len(set(drawn)) == record["checklist_candidates"]
        assert {len(each) for each in drawn} == {len(example["inserted"])}


def test_fifty_different_strings_of_ten_letters_and_digits_follow_a_space():
    drawn = strings(seed=0)
    assert len(set(drawn)) == 50
    assert all(re.fullmatch(" [A-Za-z0-9]{10}", each) for each in drawn)
    used = set("".join(drawn))
    assert used & set("abcdefghijklmnopqrstuvwxyz")
    assert used & set("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert used & set("0123456789")


def test_strings_are_the_seeds_own_and_the_same_each_time():
    assert strings(seed=3) == strings(seed=3)
    assert set(strings(seed=3)).isdisjoint(strings(seed=4))
