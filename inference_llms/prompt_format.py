"""How a task's question becomes a model's prompt: in the paper's words, through the chat template, or as it is."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from inference_llms.engines.engine import Chat, Completion, Engine, Prompt, Sampling
from utils.errors import UserError

PAPER, CHAT, PLAIN = "paper", "chat", "plain"
PROMPT_FORMATS = (PAPER, CHAT, PLAIN)
THINKING, END_OF_THINKING = "<think>", "</think>"
# Around a chat, as JSON, in a prompt that is built before the model's template is known.
CHAT_MARK = "\x00chat"


@dataclass(frozen=True)
class PromptFormat:
    """`name`: paper (the paper's prompts, stops included), chat (the question through the model's chat template) or
    plain (the question alone). `system_prompt` and `thinking` (the template's switch; None: its default) are chat's.
    """

    name: str = PAPER
    system_prompt: str | None = None
    thinking: bool | None = None

    @property
    def is_paper(self) -> bool:
        return self.name == PAPER

    def prompt(self, text: str) -> Prompt:
        """What an engine gets for a task's prompt or question."""
        return Chat(text, self.system_prompt, self.thinking) if self.name == CHAT else text

    def answer(self, completion: str) -> str:
        """The part of a completion that counts: a chat's after the thinking; nothing, if that has not ended."""
        if self.name != CHAT:
            return str(completion)
        _, end, answer = completion.rpartition(END_OF_THINKING)
        return answer.lstrip() if end or THINKING not in completion else ""

    def options(self) -> dict[str, str]:
        """The options of a command with this format; none for the paper's."""
        thinking = None if self.thinking is None else "on" if self.thinking else "off"
        given = {"prompt_format": self.name, "system_prompt": self.system_prompt, "thinking": thinking}
        return {} if self.is_paper else {name: value for name, value in given.items() if value is not None}

    def on_record(self) -> dict[str, Any]:
        """The entry for an identity or record: none for the paper's prompts, so that earlier results stay valid."""
        return {} if self.is_paper else {"prompt_format": asdict(self)}

    def __str__(self) -> str:
        details = [] if self.system_prompt is None else [f"system prompt {self.system_prompt!r}"]
        details += [] if self.thinking is None else [f"thinking {'on' if self.thinking else 'off'}"]
        return f"{self.name} ({', '.join(details)})" if details else self.name


def complete(engine: Engine, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Completion]]:
    """The engine's completions of the prompts. Those of chats begin with the mark of thinking if the template ends in
    it, so that an answer that is cut off while the model thinks shows it."""
    begun = ""
    if prompts and isinstance(prompts[0], Chat):
        from inference_llms.engines.chat_templates import render  # imports transformers, which takes seconds

        begun = begun_thinking(render(engine.tokenizer, prompts[0].messages, prompts[0].thinking))
    for position, completion in engine.complete(prompts, sampling):
        yield position, Completion(begun + completion, completion.tokens, completion.cut_off)


def begun_thinking(prompt: str) -> str:
    """The mark of thinking that a completion of this prompt begins with, because the prompt ends in it."""
    return f"{THINKING}\n" if prompt.rstrip().endswith(THINKING) else ""


PAPER_PROMPTS = PromptFormat()


def add_prompt_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--prompt_format",
        choices=PROMPT_FORMATS,
        default=PAPER,
        help="paper: the paper's prompts; chat: the task's question through the model's chat template; plain: the "
        "question alone (default: paper)",
    )
    parser.add_argument("--system_prompt", metavar="TEXT", help="chat: the system prompt (default: the template's)")
    parser.add_argument("--thinking", choices=("on", "off"), help="chat: the template's switch (default: its own)")


def prompt_format(options: argparse.Namespace) -> PromptFormat:
    """The format of the options. Raises UserError for options that have no effect on it."""
    for name in ("system_prompt", "thinking"):
        if options.prompt_format != CHAT and getattr(options, name) is not None:
            raise UserError(
                f"--{name} has no effect with --prompt_format {options.prompt_format}; add --prompt_format chat or "
                "remove it"
            )
    thinking = None if options.thinking is None else options.thinking == "on"
    return PromptFormat(options.prompt_format, options.system_prompt, thinking)


def prompt_format_on_record(identity: Any) -> PromptFormat:
    """The format in the identity of a result. Raises ValueError for other values."""
    fields = identity.get("prompt_format") if isinstance(identity, dict) else None
    if fields is None:
        return PAPER_PROMPTS
    if not isinstance(fields, dict) or fields.keys() != asdict(PAPER_PROMPTS).keys():
        raise ValueError("its prompt format is not one of " + ", ".join(PROMPT_FORMATS))
    return PromptFormat(**fields)
