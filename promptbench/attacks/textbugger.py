"""TextBugger (Li et al. 2019): a typing slip inside a word, a look-alike letter, or a word of similar meaning."""

from random import Random

from promptbench.attack import AttackParts, WordAttack, draws_for
from promptbench.extra_models import (
    cosine_at_angular_similarity,
    open_sentence_encoder,
    open_word_vectors,
    similar_to_clean,
)
from promptbench.letter_edits import delete_letter, insert_letter, swap_letters, with_homoglyphs
from promptbench.prompt_words import PromptWords

PARTS = ("sentence_encoder", "word_vectors")
NEAREST_WORDS = 5
LEAST_COSINE = cosine_at_angular_similarity(0.8)


def slip(word: str, draws: Random) -> list[str]:
    """A space before an inner letter, a missing inner letter, and two swapped inner letters, each at a random place.
    Inner letters are all except the first and the last. Results equal to the word are left out."""
    inner = range(1, len(word) - 1)
    slips = []
    if inner:
        slips += [insert_letter(word, draws.choice(inner), " "), delete_letter(word, draws.choice(inner))]
    if len(inner) > 1:
        slips.append(swap_letters(word, draws.choice(inner[:-1])))
    return [candidate for candidate in slips if candidate != word]


def open_attack(parts: AttackParts) -> WordAttack:
    """Raises MissingPart without word vectors and encoder, UserError for a malformed one."""
    vectors = open_word_vectors(parts.word_vectors)
    encoder = open_sentence_encoder(parts.sentence_encoder)

    def substitutes(prompt: PromptWords, index: int) -> list[str]:
        word = prompt.words[index]
        slips = slip(word, draws_for(parts.seed, "textbugger", prompt.text, index))
        return [*slips, *with_homoglyphs(word), *vectors.nearest(word, NEAREST_WORDS)]

    return WordAttack(rank_by="delete", substitutes=substitutes, holds=similar_to_clean(encoder, LEAST_COSINE))
