"""Random numbers that do not depend on what was drawn before."""

import random


def draws_for(seed: int, attack: str, prompt: str, index: int) -> random.Random:
    """The generator of what an attack draws for the word at `index` of a prompt (or for its candidate of that number):
    the same in every run and on every machine, in whatever order prompts and words are asked for."""
    return random.Random(repr((seed, attack, prompt, index)))
