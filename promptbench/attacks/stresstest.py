"""StressTest (Naik et al. 2018): statements without content after the last word."""

from promptbench.attack import AttackParts, WholePromptAttack
from promptbench.prompt_words import PromptWords

SUFFIXES = (" and true is true ", " and false is not true ", " and true is true " * 5)


def with_suffixes(clean: PromptWords) -> list[str]:
    """The prompt with a space and each suffix right after its last word."""
    return sorted(clean.insert_after(len(clean.words) - 1, suffix).text for suffix in SUFFIXES)


def open_attack(parts: AttackParts) -> WholePromptAttack:
    return WholePromptAttack(prompts=with_suffixes)
