"""Find the answer in a completion: inside \\boxed{}, or after words such as "The answer is"."""

import re

# In any case, with or without a colon, plain or bold: "The answer is: 5", "the answer is 5", "**Answer:** 5".
ANSWER_WORDS = r"(?i:\banswer(?:[\s*]*:|\s+is\b[\s*]*:?))"
# The end of a line or sentence, or the start of a reason: "12 (since 3*4)".
_END = re.compile(r"\n|[.!?](?=\s|$)|[\s,;(]*\b(?:since|because)\b")


def first_sentence(text: str) -> str:
    """The first sentence of the text after an answer's mark, at most a line, without the reason given for it."""
    return _END.split(text.lstrip("* \n"), maxsplit=1)[0].rstrip("* ")


def text_in_braces(text: str) -> str | None:
    """The text inside the braces that `text` starts with; None if it does not start with any, or they do not close."""
    depth = 0
    for position, character in enumerate(text if text.startswith("{") else ""):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[1:position]
    return None


def last_boxed(text: str) -> str | None:
    """The text inside the last \\boxed{}, or \\fbox{} if there is no \\boxed; None if there is neither."""
    command = "\\boxed" if "\\boxed" in text else "\\fbox"
    _, found, inside = text.rpartition(command)
    return text_in_braces(inside) if found else None
