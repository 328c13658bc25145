"""DeepWordBug (Gao et al. 2018): one mistyped letter per word."""

import string
from random import Random

from promptbench.attack import AttackParts, WordAttack, draws_for
from promptbench.letter_edits import delete_letter, insert_letter, substitute_letter, swap_letters, within_edit_distance
from promptbench.prompt_words import PromptWords

MAX_EDIT_DISTANCE = 30


def mistype(word: str, draws: Random) -> list[str]:
    """A swap, a substitution, a deletion and an insertion, each at a random place; new letters are drawn from a-z and
    A-Z. Results equal to the word are left out. Empty for a word of one letter."""
    if len(word) < 2:
        return []
    letters = range(len(word))
    mistyped = [
        swap_letters(word, draws.choice(letters[:-1])),
        substitute_letter(word, draws.choice(letters), draws.choice(string.ascii_letters)),
        delete_letter(word, draws.choice(letters)),
        insert_letter(word, draws.choice(letters), draws.choice(string.ascii_letters)),
    ]
    return [candidate for candidate in mistyped if candidate != word]


def open_attack(parts: AttackParts) -> WordAttack:
    def substitutes(prompt: PromptWords, index: int) -> list[str]:
        return mistype(prompt.words[index], draws_for(parts.seed, "deepwordbug", prompt.text, index))

    return WordAttack(rank_by="unk", substitutes=substitutes, holds=within_edit_distance(MAX_EDIT_DISTANCE))
