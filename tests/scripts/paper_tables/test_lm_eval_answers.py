"""Prompts and answers of lm-evaluation-harness's tasks, as a person reads them."""

import json

import pytest

from inference_llms.prompt_format import CHAT_MARK
from scripts.paper_tables.lm_eval_answers import readable_answer, readable_prompt

CHOICES = 'Two and two?\n-> " 3"\n-> " 4"'


@pytest.mark.parametrize(
    ("prompt", "stored", "shown"),
    [
        ("Two and two?", [["It is 4."]], "It is 4."),
        (CHOICES, [[[-7.25, False]], [[-0.5, True]]], "log-likelihoods:\n  -7.25  3\n→ -0.50  4"),
        (CHOICES[:-8], [[[-7.25, False]]], "' 3': log-likelihood -7.25, not what the model generates"),
        ("Two and two?", [[[-2, False]], [[-1, False]]], "log-likelihoods:\n  -2.00  choice 1\n→ -1.00  choice 2"),
        ("A whole text.", [[-123.456]], "log-likelihood -123.46"),
        ("Two and two?", 4, "4"),
    ],
    ids=["a text", "choices", "one text that is scored", "texts that are not known", "perplexity", "another form"],
)
def test_an_answer_is_shown_as_a_person_reads_it(prompt, stored, shown):
    assert readable_answer(prompt, json.dumps(stored)) == shown


def test_a_chat_is_shown_by_role():
    history = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Two\nand two?"}]
    prompt = f'{CHAT_MARK}{json.dumps([history, True])}{CHAT_MARK}\n-> " 4"'
    assert readable_prompt(prompt) == 'system: Be brief.\nuser: Two\nand two?\n-> " 4"'
