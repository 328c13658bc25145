"""Chats become tokens as the model's own template has them, or are refused in one line."""

import pytest
from transformers import AutoTokenizer

from inference_llms.engines.chat_templates import render, tokens_of_chats
from inference_llms.engines.engine import Chat
from inference_llms.engines.model_loading import tokens_of_prompts
from tests.inference_llms.support import ZOO
from utils.errors import UserError

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% if enable_thinking is defined and not enable_thinking %} no thoughts"
    "{% endif %}{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}x"


@pytest.fixture
def tokenizer():
    def make(template: str | None):
        loaded = AutoTokenizer.from_pretrained(ZOO / "base")
        loaded.chat_template = template
        return loaded

    return make


@pytest.mark.parametrize("system", [None, "be brief"])
def test_tokens_equal_those_of_apply_chat_template(tokenizer, system):
    loaded = tokenizer(TEMPLATE)
    messages = [{"role": "user", "content": "how many pens"}]
    if system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    expected = loaded.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tokens_of_chats(loaded, [Chat("how many pens", system)]) == [expected]
    assert expected.count(loaded.bos_token_id) == 1, "the tokenizer must not add a second begin token"


def test_chats_that_fill_the_context_have_no_tokens(tokenizer, capsys):
    chats = [Chat("pens " * 50), Chat("pens")]
    assert [tokens is None for tokens in tokens_of_prompts(tokenizer(TEMPLATE), chats, 40)] == [True, False]
    assert "1 of 2 prompts fill the model's context of 40 tokens" in capsys.readouterr().err


def test_thinking_is_the_templates_own_switch(tokenizer):
    loaded = tokenizer(TEMPLATE)
    by_switch = {switch: render(loaded, Chat("a").messages, switch) for switch in (None, True, False)}
    assert by_switch[False] == by_switch[True] + " no thoughts" and by_switch[None] == by_switch[True]
    assert render(tokenizer("{{ thinking }}"), Chat("a").messages, True) == "True"


@pytest.mark.parametrize(
    ("template", "chat", "reason"),
    [
        (None, Chat("a"), "has no chat template; choose --prompt_format paper or plain"),
        ("{{ messages }}", Chat("a", thinking=False), "--thinking off: the chat template of .* has no switch"),
        (NO_SYSTEM, Chat("a", "b"), r"fails \(System role not supported\); remove --system_prompt"),
        ("{{ messages.nothing.here }}", Chat("a"), "its chat template fails .*; choose --prompt_format paper or plain"),
    ],
)
def test_a_template_that_cannot_make_the_chat_is_refused(tokenizer, template, chat, reason):
    with pytest.raises(UserError, match=reason):
        render(tokenizer(template), chat.messages, chat.thinking)
