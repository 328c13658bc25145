"""How near two texts are in meaning, and the limits on how far an attack may go."""

import functools
import math
from collections.abc import Sequence

import numpy as np

from promptbench.attack import AttackParts, Constraint
from promptbench.model_parts import part_of_attack
from promptbench.prompt_words import PromptWords


class SentenceEncoder:
    """Cosines between texts by a sentence encoder, which runs on the CPU and encodes each text once."""

    def __init__(self, path_or_hub_id: str):
        """Load the model. Raises MissingPart where there is none, UserError for a folder that cannot be loaded."""
        with part_of_attack("sentence_encoder", path_or_hub_id, AttackParts.sentence_encoder) as here:
            from sentence_transformers import SentenceTransformer  # seconds to import

            # The GPUs' memory is the engine's; float32, as cosines must not hang on the precision of the file.
            self._model = SentenceTransformer(
                path_or_hub_id,
                device="cpu",
                local_files_only=here,
                trust_remote_code=False,
                model_kwargs={"dtype": "float32"},
            )
        self._directions: dict[str, np.ndarray] = {}

    def cosines(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """The cosine of each pair of texts: float32, in [-1, 1] but for rounding. New texts are encoded in batches."""
        texts = dict.fromkeys(text for pair in pairs for text in pair)
        new = [text for text in texts if text not in self._directions]
        if new:
            directions = self._model.encode(new, normalize_embeddings=True, show_progress_bar=False)
            self._directions.update(zip(new, directions, strict=True))
        return np.array([self._directions[one] @ self._directions[other] for one, other in pairs], np.float32)


@functools.cache
def open_sentence_encoder(path_or_hub_id: str) -> SentenceEncoder:
    """The encoder, one for all attacks of a run. Raises as `SentenceEncoder`."""
    return SentenceEncoder(path_or_hub_id)


def cosine_at_angular_similarity(similarity: float) -> float:
    """The cosine of two vectors whose angular similarity, 1 - arccos(cosine) / pi, is this."""
    return math.cos((1 - similarity) * math.pi)


def similar_to_clean(encoder: SentenceEncoder, least_cosine: float) -> Constraint:
    """The constraint that a candidate is at least so near to the clean prompt."""

    def holds(clean: PromptWords, current: PromptWords, candidates: Sequence[PromptWords]) -> Sequence[bool]:
        return (encoder.cosines([(clean.text, each.text) for each in candidates]) >= least_cosine).tolist()

    return holds


def similar_around_change(encoder: SentenceEncoder, least_cosine: float, width: int) -> Constraint:
    """The constraint that the `width` words around the changed one are at least so near to those of the current
    prompt. A candidate of fewer words is not judged, as in TextAttack 0.3.7."""

    def holds(clean: PromptWords, current: PromptWords, candidates: Sequence[PromptWords]) -> Sequence[bool]:
        judged = [each for each in candidates if len(each.words) >= width]
        windows = [
            (window(current, index, width), window(each, index, width))
            for each, index in ((each, each.index_of_change(current)) for each in judged)
        ]
        near = dict(zip((each.text for each in judged), encoder.cosines(windows) >= least_cosine, strict=True))
        return [bool(near.get(each.text, True)) for each in candidates]

    return holds


def window(prompt: PromptWords, index: int, width: int) -> str:
    """The text of `width` words, an odd number, around the one at `index`, from the first one's start to the last
    one's end. At the prompt's ends it does not stand in the middle; a prompt of fewer words is taken whole."""
    start = max(0, min(index - width // 2, len(prompt.words) - width))
    last = min(start + width, len(prompt.words)) - 1
    return prompt.text[prompt.places[start][0] : prompt.places[last][1]]
