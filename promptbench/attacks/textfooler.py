"""TextFooler (Jin et al. 2020): words of like meaning and the same part of speech."""

from promptbench.attack import AttackParts, WordAttack, both
from promptbench.parts_of_speech import same_part_of_speech
from promptbench.prompt_words import PromptWords
from promptbench.sentence_similarity import (
    cosine_at_angular_similarity,
    open_sentence_encoder,
    similar_around_change,
)
from promptbench.word_vectors import open_word_vectors

PARTS = ("sentence_encoder", "word_vectors")
NUMBER = 50
LEAST_COSINE_OF_WORDS = 0.6
LEAST_COSINE = cosine_at_angular_similarity(0.840845057)
WINDOW = 15


def open_attack(parts: AttackParts) -> WordAttack:
    """Raises MissingPart without word vectors and encoder, UserError for a malformed one."""
    vectors = open_word_vectors(parts.word_vectors)
    encoder = open_sentence_encoder(parts.sentence_encoder)

    def substitutes(prompt: PromptWords, index: int) -> list[str]:
        return vectors.nearest(prompt.words[index], NUMBER, LEAST_COSINE_OF_WORDS)

    holds = both(same_part_of_speech, similar_around_change(encoder, LEAST_COSINE, WINDOW))
    return WordAttack(rank_by="delete", substitutes=substitutes, holds=holds)
