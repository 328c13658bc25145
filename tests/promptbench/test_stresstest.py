"""StressTest: three statements behind the last word."""

import pytest

from promptbench.attacks import stresstest
from promptbench.prompt_words import PromptWords
from promptbench.search import search
from tests.promptbench.golden_attacks import PROMPT, PROTECTED, golden, needs_golden
from utils.errors import UserError


@needs_golden
def test_every_recorded_prompt_gets_the_recorded_candidates_in_the_recorded_order():
    for record in golden("suffix", "prompts"):
        clean = PromptWords.of(record["text"])
        assert clean.words[-1] == record["last_word"]
        assert clean.places[-1][1] == record["inserted_at"]
        assert stresstest.with_suffixes(clean) == record["stresstest_asked_in_order"]


def test_the_three_statements_stand_before_the_final_full_stop():
    assert stresstest.with_suffixes(PromptWords.of("Say yes or 'no'.")) == [
        "Say yes or 'no'  and false is not true .",
        "Say yes or 'no'  and true is true  and true is true  and true is true  and true is true  and true is true .",
        "Say yes or 'no'  and true is true .",
    ]


def test_one_call_asks_for_the_clean_prompt_and_all_three_and_the_suffix_is_marked():
    calls = []

    def score(prompts):
        calls.append(list(prompts))
        return [0.5 if "false" in prompt else 0.7 for prompt in prompts]

    result = search(stresstest.open_attack(None), PROMPT, PROTECTED, score)
    assert [len(call) for call in calls] == [4]
    assert result.number_of_queries == 4
    assert (result.clean_accuracy, result.final_accuracy) == (0.7, 0.5)
    marked = [result.final_prompt[start:end] for start, end in result.changed_places]
    assert marked == ["and", "false", "is", "not", "true"]


def test_a_prompt_that_ends_in_its_placeholder_is_refused_for_the_suffix_would_break_it():
    with pytest.raises(UserError, match="give the prompt a word after it"):
        search(stresstest.open_attack(None), "Text: {content}", PROTECTED, lambda prompts: [1.0] * len(prompts))
