"""The semantic attack: other prompts of the same meaning, written by people."""

from promptbench.attack import AttackParts, WholePromptAttack
from promptbench.missing_part import MissingPart


def open_attack(parts: AttackParts) -> WholePromptAttack:
    """Raises MissingPart for a task without paraphrases."""
    paraphrases = sorted(parts.task.paraphrases)
    if not paraphrases:
        raise MissingPart(f"the task {parts.task.name} has no paraphrases; write some into its file")
    return WholePromptAttack(prompts=lambda clean: paraphrases)
