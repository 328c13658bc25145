"""The semantic attack: other prompts of the same meaning, written by people."""

from promptbench.attack import AttackParts, WholePromptAttack
from utils.errors import UserError


def open_attack(parts: AttackParts) -> WholePromptAttack:
    """Raises UserError for a task without paraphrases."""
    paraphrases = sorted(parts.task.paraphrases)
    if not paraphrases:
        raise UserError(f"the task {parts.task.name} has no paraphrases for the attack semantic; choose another attack")
    return WholePromptAttack(prompts=lambda clean: paraphrases)
