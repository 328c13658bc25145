"""Parts of speech, and the limit that a changed word keeps its own."""

import functools
from collections.abc import Sequence

from HanTa.HanoverTagger import HanoverTagger

from promptbench.prompt_words import PromptWords

WORDS_BEFORE, WORDS_AFTER = 4, 3
MAY_SWAP = {"noun", "verb"}

# The universal parts of speech (Petrov et al. 2012), each with the beginnings of the British National Corpus's tags
# (C5) for it.
PART_OF_TAG = {
    "NN": "noun",
    "NP": "noun",
    "V": "verb",
    "AJ": "adjective",
    "AV": "adverb",
    "XX": "adverb",
    "PN": "pronoun",
    "AT": "determiner",
    "DP": "determiner",
    "DT": "determiner",
    "EX": "determiner",
    "PR": "adposition",
    "CR": "numeral",
    "OR": "numeral",
    "CJ": "conjunction",
    "PO": "particle",
    "TO": "particle",
}


@functools.cache
def english_tagger() -> HanoverTagger:
    """The Hannover Tagger with the English model of its package, trained on the British National Corpus."""
    return HanoverTagger("morphmodel_en.pgz")


@functools.cache
def part_of_speech(before: tuple[str, ...], word: str, after: tuple[str, ...]) -> str:
    """The universal part of speech of a word between others; "other" for foreign words, letters and the like."""
    _, _, tag = english_tagger().tag_sent([*before, word, *after])[len(before)]
    return PART_OF_TAG.get(tag[:1], PART_OF_TAG.get(tag[:2], "other"))


def same_part_of_speech(clean: PromptWords, current: PromptWords, candidates: Sequence[PromptWords]) -> Sequence[bool]:
    """The constraint that the changed word is what the clean prompt's word is, in that prompt's place: among the four
    words before and the three after it. A noun may become a verb, and a verb a noun. Words may not change in number."""
    return [len(each.words) == len(clean.words) and _same(clean, current, each) for each in candidates]


def _same(clean: PromptWords, current: PromptWords, candidate: PromptWords) -> bool:
    index = candidate.index_of_change(current)
    before = clean.words[max(0, index - WORDS_BEFORE) : index]
    after = clean.words[index + 1 : index + 1 + WORDS_AFTER]
    parts = {part_of_speech(before, prompt.words[index], after) for prompt in (clean, candidate)}
    return len(parts) == 1 or parts == MAY_SWAP
