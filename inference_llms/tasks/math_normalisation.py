"""Equality of MATH answers: the normalisation of Hendrycks et al. (2021), and reading inside \\boxed{}."""

import re


class CannotNormalise(ValueError):
    """The text is not LaTeX of the kind that the normalisation understands."""


def last_boxed(text: str) -> str | None:
    """What stands inside the last \\boxed{}, or \\fbox{} where there is no \\boxed; None where nothing does."""
    command = "\\boxed" if "\\boxed" in text else "\\fbox"
    _, found, inside = text.rpartition(command)
    if not found or not inside.startswith("{"):
        return None
    depth = 0
    for position, character in enumerate(inside):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return inside[1:position]
    return None


def is_equivalent(answer: str | None, gold: str | None) -> bool:
    """Whether two answers are the same after normalising; as they are, where either cannot be normalised.

    A missing answer equals nothing.
    """
    if answer is None or gold is None:
        return False
    try:
        return normalise(answer) == normalise(gold)
    except CannotNormalise:
        return answer == gold


def normalise(text: str) -> str:
    """One spelling for the common ways to write an answer.

    Raises `CannotNormalise` for two units in one text, and for \\sqrt or \\frac without an argument.
    """
    text = text.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac")
    for ornament in ("\\left", "\\right", "^{\\circ}", "^\\circ", "\\$"):
        text = text.replace(ornament, "")
    text = without_units(text).replace("\\%", "")
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = "0" + text
    name, equals, value = text.partition("=")
    if equals and len(name) <= 2 and "=" not in value:
        text = value
    text = with_frac_braces(with_sqrt_braces(text).replace(" ", ""))
    return "\\frac{1}{2}" if text == "0.5" else slash_as_frac(text)


def without_units(text: str) -> str:
    number, *units = text.split("\\text{ ")
    if len(units) > 1:
        raise CannotNormalise(text)
    return number


def with_sqrt_braces(text: str) -> str:
    """\\sqrt3 as \\sqrt{3}."""
    before, *arguments = text.split("\\sqrt")
    if "" in arguments:
        raise CannotNormalise(text)
    braced = (rest if rest[0] == "{" else f"{{{rest[0]}}}{rest[1:]}" for rest in arguments)
    return "\\sqrt".join([before, *braced])


def with_frac_braces(text: str) -> str:
    """\\frac12 and \\frac1{72} with both arguments in braces; unchanged where a second argument is missing."""
    before, *arguments = text.split("\\frac")
    braced = []
    for rest in arguments:
        if not rest:
            raise CannotNormalise(text)
        if rest[0] == "{":
            braced.append(rest)
        elif len(rest) == 1:
            return text
        else:
            denominator = rest[1:] if rest[1] == "{" else f"{{{rest[1]}}}{rest[2:]}"
            braced.append(f"{{{rest[0]}}}{denominator}")
    return "\\frac".join([before, *braced])


def slash_as_frac(text: str) -> str:
    """a/b with two integers as \\frac{a}{b}."""
    match = re.fullmatch(r"(0|-?[1-9][0-9]*)/(0|-?[1-9][0-9]*)", text)
    return f"\\frac{{{match[1]}}}{{{match[2]}}}" if match else text
