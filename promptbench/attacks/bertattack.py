"""BERT-Attack (Li et al. 2020): replacement words from a masked language model."""

from promptbench.attack import AttackParts, WordAttack
from promptbench.extra_models import MaskedLanguageModel, open_sentence_encoder, similar_to_clean

PARTS = ("mask_lm", "sentence_encoder")
GUESSES_PER_WORD = 48
LEAST_COSINE = 0.8


def open_attack(parts: AttackParts) -> WordAttack:
    """Raises MissingPart without the models, UserError for a folder that cannot be loaded."""
    model = MaskedLanguageModel(parts.mask_lm, GUESSES_PER_WORD)
    encoder = open_sentence_encoder(parts.sentence_encoder)
    return WordAttack(rank_by="unk", substitutes=model.substitutes, holds=similar_to_clean(encoder, LEAST_COSINE))
