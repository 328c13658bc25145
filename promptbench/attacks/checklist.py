"""CheckList (Ribeiro et al. 2020): a random string of letters and digits behind the last word."""

import string

from promptbench.attack import AttackParts, WholePromptAttack
from promptbench.prompt_words import PromptWords
from promptbench.random_draws import draws_for

CHARACTERS = string.ascii_letters + string.digits
LENGTH = 10
NUMBER = 50


def random_string(seed: int, prompt: str, number: int) -> str:
    """The string of this number for a prompt: each of its characters drawn evenly."""
    return "".join(draws_for(seed, "checklist", prompt, number).choices(CHARACTERS, k=LENGTH))


def open_attack(parts: AttackParts) -> WholePromptAttack:
    def with_strings(clean: PromptWords) -> list[str]:
        strings = (random_string(parts.seed, clean.text, number) for number in range(NUMBER))
        return sorted(clean.insert_after(len(clean.words) - 1, each).text for each in strings)

    return WholePromptAttack(prompts=with_strings)
