"""The semantic attack: other prompts with the same meaning, written by people."""

from promptbench.attack import AttackParts, MissingPart, WholePromptAttack


def open_attack(parts: AttackParts) -> WholePromptAttack:
    """Raises MissingPart for a task without paraphrases."""
    paraphrases = sorted(parts.task.paraphrases)
    if not paraphrases:
        raise MissingPart(f"the task {parts.task.name} has no paraphrases; add some to its file")
    return WholePromptAttack(prompts=lambda clean: paraphrases)
