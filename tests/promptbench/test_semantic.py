"""The semantic attack: the task's paraphrases."""

import pytest

from promptbench.attack import AttackParts
from promptbench.attacks import semantic
from promptbench.prompt_task import PromptTask
from promptbench.search import search
from tests.promptbench.golden_attacks import PROMPT, PROTECTED
from utils.errors import UserError


def task(*paraphrases: str) -> PromptTask:
    return PromptTask("made_up", PROMPT, {"good": 1, "bad": 0}, paraphrases, lambda data_dir: [])


def test_every_paraphrase_is_scored_once_in_one_call_and_the_worst_is_the_result():
    accuracies = {PROMPT: 0.6, "Good or bad? {content}": 0.9, "Is it good or bad: {content}": 0.7}
    calls = []

    def score(prompts):
        calls.append(list(prompts))
        return [accuracies[prompt] for prompt in prompts]

    attack = semantic.open_attack(AttackParts(task("Is it good or bad: {content}", "Good or bad? {content}")))
    result = search(attack, PROMPT, PROTECTED, score)
    assert calls == [[PROMPT, "Good or bad? {content}", "Is it good or bad: {content}"]]
    assert result.final_prompt == "Is it good or bad: {content}"
    assert result.performance_drop_rate == pytest.approx(-1 / 6)  # the clean prompt is worse and still not the result


def test_a_paraphrase_that_is_the_clean_prompt_is_not_asked_again():
    attack = semantic.open_attack(AttackParts(task(PROMPT, "Good or bad? {content}")))
    result = search(attack, PROMPT, PROTECTED, lambda prompts: [0.5] * len(prompts))
    assert result.number_of_queries == 2


def test_a_task_without_paraphrases_is_told_so():
    with pytest.raises(UserError, match="made_up has no paraphrases"):
        semantic.open_attack(AttackParts(task()))
