"""Stored prompts and answers of lm-evaluation-harness's tasks, as a person reads them."""

import json
import re
from collections.abc import Sequence

from inference_llms.prompt_format import CHAT_MARK

_CHAT = re.compile(f"{CHAT_MARK}(.*?){CHAT_MARK}", re.DOTALL)
_SCORED = re.compile(r'^-> (".*")$', re.MULTILINE)  # a text whose likelihood is the answer, as JSON


def readable_prompt(prompt: str) -> str:
    """A prompt with each chat as lines of role and content."""
    return _CHAT.sub(lambda found: _messages(json.loads(found[1])[0]), prompt)


def _messages(history: Sequence[dict[str, str]]) -> str:
    return "\n".join(f"{message['role']}: {message['content']}" for message in history)


def readable_answer(prompt: str, completion: str) -> str:
    """The texts of a completion, or its log-likelihoods: of each text that is scored, or of the whole prompt. A
    completion of another form stays as it is."""
    try:
        answers = [answer for of_request in json.loads(completion) for answer in of_request]
        if all(isinstance(answer, str) for answer in answers):
            return "\n\n".join(answers)
        if all(isinstance(answer, list) for answer in answers):
            texts = [json.loads(text) for text in _SCORED.findall(prompt)]
            return _choices(answers, texts)
        return "\n".join(f"log-likelihood {answer:.2f}" for answer in answers)
    except (ValueError, TypeError):
        return completion


def _choices(answers: Sequence[tuple[float, bool]], texts: Sequence[str]) -> str:
    """A line for each text with its log-likelihood; an arrow marks the highest of several. Of a single text it matters
    whether the model would generate it."""
    if len(texts) != len(answers):
        texts = [f"choice {number}" for number in range(1, len(answers) + 1)]
    if len(answers) == 1:
        ((value, is_greedy),) = answers
        return f"{texts[0]!r}: log-likelihood {value:.2f}, {'' if is_greedy else 'not '}what the model generates"
    highest = max(value for value, _ in answers)
    lines = [
        f"{'→' if value == highest else ' '} {value:.2f}  {text.strip()}"
        for text, (value, _) in zip(texts, answers, strict=True)
    ]
    return "\n".join(["log-likelihoods:", *lines])
