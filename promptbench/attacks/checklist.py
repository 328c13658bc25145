"""CheckList (Ribeiro et al. 2020): a random string of letters and digits after the last word."""

import string

from promptbench.attack import AttackParts, WholePromptAttack, draws_for
from promptbench.prompt_words import PromptWords

CHARACTERS = string.ascii_letters + string.digits
LENGTH = 10
NUMBER_OF_STRINGS = 50


def random_string(seed: int, prompt: str, number: int) -> str:
    """String `number` for a prompt, with characters drawn uniformly."""
    return "".join(draws_for(seed, "checklist", prompt, number).choices(CHARACTERS, k=LENGTH))


def open_attack(parts: AttackParts) -> WholePromptAttack:
    def with_strings(clean: PromptWords) -> list[str]:
        suffixes = (random_string(parts.seed, clean.text, number) for number in range(NUMBER_OF_STRINGS))
        return sorted(clean.insert_after(len(clean.words) - 1, suffix).text for suffix in suffixes)

    return WholePromptAttack(prompts=with_strings)
