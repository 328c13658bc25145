"""Turn chats into tokens by the model's own chat template."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from inference_llms.engines.engine import Chat
from utils.errors import UserError

# Names that templates have for the switch of thinking: Qwen's, and that of Granite and DeepSeek.
THINKING_SWITCHES = ("enable_thinking", "thinking")


def tokens_of_chats(tokenizer: PreTrainedTokenizerBase, chats: Sequence[Chat]) -> list[list[int]]:
    """Each chat's token ids, up to where the answer begins. Raises UserError as `render` does."""
    texts = [render(tokenizer, chat.messages, chat.thinking) for chat in chats]
    # The template writes the special tokens itself.
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, str]],
    thinking: bool | None = None,
    begins_answer: bool = True,
) -> str:
    """Messages as text, up to where the answer begins, or up to the end of the last message, which goes on.

    Raises UserError if there is no chat template, or it refuses a system prompt or has no switch of thinking."""
    model = tokenizer.name_or_path
    if not tokenizer.chat_template:
        raise UserError(f"{model}: its tokenizer has no chat template; choose --prompt_format paper or plain")
    settings = {} if thinking is None else _thinking(tokenizer, thinking)
    if not begins_answer:
        settings["continue_final_message"] = True
    try:
        return tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=begins_answer, tokenize=False, **settings
        )
    except (TemplateError, ValueError, TypeError, KeyError, AttributeError) as error:  # of the template's own code
        reason = " ".join(str(error).split())[:200]
        remedy = "choose --prompt_format paper or plain"
        if messages[0]["role"] == "system":
            remedy = "remove --system_prompt, or put its text into the questions"
        raise UserError(f"{model}: its chat template fails ({reason}); {remedy}") from error


def _thinking(tokenizer: PreTrainedTokenizerBase, thinking: bool) -> dict[str, Any]:
    """The template's own switch, set."""
    template = tokenizer.get_chat_template()
    switch = next((name for name in THINKING_SWITCHES if re.search(rf"\b{name}\b", template)), None)
    if switch is None:
        word = "on" if thinking else "off"
        raise UserError(
            f"--thinking {word}: the chat template of {tokenizer.name_or_path} has no switch for thinking "
            f"({' or '.join(THINKING_SWITCHES)}); remove it"
        )
    return {switch: thinking}
