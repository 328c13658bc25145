"""Words by a masked language model."""

from pathlib import Path

import pytest

from promptbench.masked_words import MaskedLanguageModel
from promptbench.missing_part import MissingPart
from promptbench.prompt_words import PromptWords
from tests.promptbench.attack_parts import byte_level_tokenizer, word_piece_tokenizer, write_mask_lm
from utils.errors import UserError

WORDS = ["judge", "weigh", "rate", "the", "text", "##s", "sub", "##lime", "as", "."]
GUESSES = {
    "judge": ["weigh", "##s", "[SEP]", ".", "[UNK]", "rate", "judge"],
    "text": ["judge", "weigh"],
    "[MASK]": ["rate", "text", "##lime", "as"],
}


def model_of(folder: Path, number: int = 7) -> MaskedLanguageModel:
    return MaskedLanguageModel(str(folder), number)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_mask_lm(tmp_path_factory.mktemp("mask_lm"), word_piece_tokenizer(WORDS), GUESSES)


def test_whole_words_come_the_likeliest_first_without_the_word_itself(folder):
    model = model_of(folder)
    assert model.substitutes(PromptWords.of("judge the text."), 0) == ["weigh", "rate"]
    assert model.substitutes(PromptWords.of("Judge the text."), 0) == ["weigh", "rate"]
    assert model.substitutes(PromptWords.of("The text: 'judge.'"), 2) == ["weigh", "rate"]


def test_pieces_signs_and_special_tokens_count_among_the_first_guesses(folder):
    assert model_of(folder, 5).substitutes(PromptWords.of("judge the text"), 0) == ["weigh"]
    assert model_of(folder, 1).substitutes(PromptWords.of("judge the text"), 0) == ["weigh"]


def test_in_place_of_a_word_that_is_no_piece_of_the_vocabulary_the_model_sees_a_mask(folder):
    model = model_of(folder, 4)
    assert model.substitutes(PromptWords.of("judge sublime texts xyz"), 1) == ["rate", "text", "as"]
    assert model.substitutes(PromptWords.of("judge sublime texts xyz"), 2) == ["rate", "text", "as"]
    assert model.substitutes(PromptWords.of("judge sublime texts xyz"), 3) == ["rate", "text", "as"]


def test_the_guesses_are_those_at_the_word_in_the_prompt_given(folder):
    model = model_of(folder)
    prompt = PromptWords.of("judge the text")
    assert model.substitutes(prompt, 2) == ["judge", "weigh"]
    assert model.substitutes(prompt.replace(2, "judge"), 2) == ["weigh", "rate"]
    assert model.substitutes(prompt, 2) == ["judge", "weigh"]


def test_a_word_beyond_what_the_model_reads_has_no_candidates(folder):
    prompt = PromptWords.of("text " * 70 + "judge")
    model = model_of(folder)
    assert model.substitutes(prompt, 70) == []
    assert model.substitutes(prompt, 0) != []


def test_pieces_that_start_with_a_space_are_whole_words_inside_a_text_and_others_at_its_start(tmp_path):
    tokenizer = byte_level_tokenizer(["judge", "\u0120judge", "rate", "\u0120rate", "\u0120weigh"])
    guesses = {"\u0120judge": ["\u0120rate", "rate", "\u0120weigh"], "judge": ["\u0120weigh", "rate", "\u0120rate"]}
    model = model_of(write_mask_lm(tmp_path, tokenizer, guesses), 3)
    assert model.substitutes(PromptWords.of("judge judge"), 1) == ["rate", "weigh"]
    assert model.substitutes(PromptWords.of("judge judge"), 0) == ["rate"]


def test_a_model_that_is_not_there_or_no_masked_one_is_told_in_one_line(tmp_path, folder):
    with pytest.raises(MissingPart, match=r"--mask_lm .*bert-base-uncased"):
        model_of(tmp_path / "none")
    causal = Path(__file__).parents[2] / "scripts" / "tiny_zoo" / "classify"
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    for broken in (causal, tmp_path):
        with pytest.raises(UserError, match="--mask_lm") as told:
            model_of(broken)
        assert "\n" not in str(told.value) and not isinstance(told.value, MissingPart)
