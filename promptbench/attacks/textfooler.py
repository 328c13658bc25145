"""TextFooler (Jin et al. 2020): words of similar meaning and the same part of speech."""

from collections.abc import Sequence

from promptbench.attack import AttackParts, WordAttack
from promptbench.extra_models import (
    cosine_at_angular_similarity,
    english_tagger,
    open_sentence_encoder,
    open_word_vectors,
    same_part_of_speech,
    similar_around_change,
)
from promptbench.prompt_words import PromptWords

PARTS = ("sentence_encoder", "word_vectors")
NEAREST_WORDS = 50
LEAST_COSINE_OF_WORDS = 0.6
LEAST_COSINE = cosine_at_angular_similarity(0.840845057)
WINDOW = 15


def open_attack(parts: AttackParts) -> WordAttack:
    """Raises MissingPart without word vectors, encoder and tagger, UserError for a malformed one."""
    vectors = open_word_vectors(parts.word_vectors)
    encoder = open_sentence_encoder(parts.sentence_encoder)
    is_similar = similar_around_change(encoder, LEAST_COSINE, WINDOW)
    english_tagger()

    def substitutes(prompt: PromptWords, index: int) -> list[str]:
        return vectors.nearest(prompt.words[index], NEAREST_WORDS, LEAST_COSINE_OF_WORDS)

    def holds(clean: PromptWords, current: PromptWords, candidates: Sequence[PromptWords]) -> Sequence[bool]:
        kept = [candidate for candidate in candidates if same_part_of_speech(clean, current, candidate)]
        similar = dict(zip((candidate.text for candidate in kept), is_similar(clean, current, kept), strict=True))
        return [similar.get(candidate.text, False) for candidate in candidates]

    return WordAttack(rank_by="delete", substitutes=substitutes, holds=holds)
