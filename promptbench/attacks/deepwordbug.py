"""DeepWordBug (Gao et al. 2018): one mistyped letter a word."""

import string
from random import Random

from promptbench.attack import AttackParts, WordAttack
from promptbench.edit_distance import within_edit_distance
from promptbench.letter_edits import delete_letter, insert_letter, substitute_letter, swap_letters
from promptbench.prompt_words import PromptWords
from promptbench.random_draws import draws_for

MAX_EDIT_DISTANCE = 30


def mistype(word: str, draws: Random) -> list[str]:
    """A swap, a substitution, a deletion and an insertion, each at a place of its own drawn evenly, new letters evenly
    from a-z and A-Z. One that gives the word back is left out; a word of one letter has none."""
    if len(word) < 2:
        return []
    letters = range(len(word))
    mistyped = [
        swap_letters(word, draws.choice(letters[:-1])),
        substitute_letter(word, draws.choice(letters), draws.choice(string.ascii_letters)),
        delete_letter(word, draws.choice(letters)),
        insert_letter(word, draws.choice(letters), draws.choice(string.ascii_letters)),
    ]
    return [each for each in mistyped if each != word]


def open_attack(parts: AttackParts) -> WordAttack:
    def substitutes(prompt: PromptWords, index: int) -> list[str]:
        return mistype(prompt.words[index], draws_for(parts.seed, "deepwordbug", prompt.text, index))

    return WordAttack(rank_by="unk", substitutes=substitutes, holds=within_edit_distance(MAX_EDIT_DISTANCE))
