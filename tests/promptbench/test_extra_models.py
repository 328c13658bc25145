"""Word vectors, masked language models, a real sentence encoder and the real tagger."""

import json
import math
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from promptbench.attack import MissingPart
from promptbench.extra_models import (
    MaskedLanguageModel,
    SentenceEncoder,
    WordVectors,
    cosine_at_angular_similarity,
    english_tagger,
    open_sentence_encoder,
    open_word_vectors,
    part_of_speech,
    same_part_of_speech,
    similar_around_change,
    window,
)
from promptbench.prompt_words import PromptWords
from tests.inference_llms.support import ZOO
from tests.promptbench.attack_parts import (
    ENCODER,
    byte_level_tokenizer,
    word_piece_tokenizer,
    write_encoder,
    write_mask_lm,
    write_vectors,
)
from utils.errors import UserError

# Word vectors


def at_angle(degrees: float, length: float = 1.0) -> tuple[float, float]:
    return length * math.cos(math.radians(degrees)), length * math.sin(math.radians(degrees))


VECTORS = {
    "judge": at_angle(0),
    "far": at_angle(180),
    "assess": at_angle(-21, 7),
    "rate": at_angle(20, 0.1),
    "weigh": at_angle(10),
    "shout": at_angle(61),
    "rank": at_angle(59),
}


@pytest.fixture
def vectors(tmp_path) -> WordVectors:
    return open_word_vectors(write_vectors(tmp_path / "vectors.txt", VECTORS))


def test_nearest_words_are_ordered_by_angle_not_by_length(vectors):
    assert vectors.nearest("judge", 3) == ["weigh", "rate", "assess"]
    assert vectors.nearest("judge", 50) == ["weigh", "rate", "assess", "rank", "shout", "far"]


def test_equally_near_words_come_in_file_order():
    vectors = WordVectors(["a", "c", "b", "d"], np.array([[1, 0], [0, 2], [0, 1], [0, 3]], np.float32))
    assert vectors.nearest("a", 3) == ["c", "b", "d"]
    assert vectors.nearest("a", 2) == ["c", "b"]


def test_words_below_the_least_cosine_are_left_out(vectors):
    assert vectors.nearest("judge", 50, 0.5) == ["weigh", "rate", "assess", "rank"]  # cos 60 degrees
    assert vectors.nearest("judge", 1, 0.99) == []  # the nearest is at 0.985


@pytest.mark.parametrize(
    ("word", "nearest"), [("judge", "weigh"), ("Judge", "Weigh"), ("JUDGE", "WEIGH"), ("jUdge", "weigh")]
)
def test_near_words_are_written_like_the_word(vectors, word, nearest):
    assert vectors.nearest(word, 1) == [nearest]


def test_a_word_without_a_vector_has_no_near_words(vectors):
    assert vectors.nearest("judge'", 5) == vectors.nearest("nonsense", 5) == []


def test_a_word_is_never_near_itself_in_any_case(tmp_path):
    vectors = open_word_vectors(write_vectors(tmp_path / "v.txt", {"Text": (1, 0), "text": (1, 0.01), "TEXT": (1, 0)}))
    assert vectors.nearest("text", 5) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"good 1 0\nbad 1 x\n", "line 2"),
        (b"good 1 0\nbad 1\n", "line 2 has 1 numbers where line 1 has 2"),
        (b"good 1 0\n\nbad 1 0\n", "line 2"),
        (b"good\n", "line 1"),
        (b"good nan 0\n", "line 1"),
        (b"good 1 0\nbad 0 0\n", "line 2"),
        (b"good 1 0\n\xff\xfe 1 0\n", "line 2"),
        (b"", "is empty"),
    ],
)
def test_a_malformed_line_is_named_with_its_file(tmp_path, content, message):
    path = tmp_path / "vectors.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"--word_vectors {path} {message}") as error:
        open_word_vectors(path)
    assert not isinstance(error.value, MissingPart)


def test_missing_word_vectors_are_reported_with_their_source(tmp_path):
    for path in (None, tmp_path / "none.txt", tmp_path):
        with pytest.raises(MissingPart, match=r"--word_vectors .*counter-fitting"):
            open_word_vectors(path)


# Masked language models

WORDS = ["judge", "weigh", "rate", "the", "text", "##s", "sub", "##lime", "as", "."]
GUESSES = {
    "judge": ["weigh", "##s", "[SEP]", ".", "[UNK]", "rate", "judge"],
    "text": ["judge", "weigh"],
    "[MASK]": ["rate", "text", "##lime", "as"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_mask_lm(tmp_path_factory.mktemp("mask_lm"), word_piece_tokenizer(WORDS), GUESSES)


@pytest.mark.parametrize(
    ("number", "text", "index", "substitutes"),
    [
        (7, "judge the text.", 0, ["weigh", "rate"]),
        (7, "Judge the text.", 0, ["weigh", "rate"]),
        (7, "The text: 'judge.'", 2, ["weigh", "rate"]),
        (7, "judge the text", 2, ["judge", "weigh"]),
        # Parts of words, punctuation and special tokens count among the guesses.
        (5, "judge the text", 0, ["weigh"]),
        (1, "judge the text", 0, ["weigh"]),
        # The model sees a mask instead of a word that is not one token.
        (4, "judge sublime texts xyz", 1, ["rate", "text", "as"]),
        (4, "judge sublime texts xyz", 2, ["rate", "text", "as"]),
        (4, "judge sublime texts xyz", 3, ["rate", "text", "as"]),
        # Beyond the longest text that the model can read.
        (7, "text " * 70 + "judge", 70, []),
        (7, "text " * 70 + "judge", 0, ["judge", "weigh"]),
    ],
)
def test_substitutes_are_whole_words_likeliest_first(folder, number, text, index, substitutes):
    model = MaskedLanguageModel(str(folder), number)
    assert model.substitutes(PromptWords.of(text), index) == substitutes


def test_guesses_depend_on_the_prompt_as_changed_so_far(folder):
    model = MaskedLanguageModel(str(folder), 7)
    prompt = PromptWords.of("judge the text")
    assert model.substitutes(prompt.replace(2, "judge"), 2) == ["weigh", "rate"]


def test_tokens_that_start_with_a_space_are_words_only_inside_a_text(tmp_path):
    tokenizer = byte_level_tokenizer(["judge", "\u0120judge", "rate", "\u0120rate", "\u0120weigh"])
    guesses = {"\u0120judge": ["\u0120rate", "rate", "\u0120weigh"], "judge": ["\u0120weigh", "rate", "\u0120rate"]}
    model = MaskedLanguageModel(str(write_mask_lm(tmp_path, tokenizer, guesses)), 3)
    assert model.substitutes(PromptWords.of("judge judge"), 1) == ["rate", "weigh"]
    assert model.substitutes(PromptWords.of("judge judge"), 0) == ["rate"]


def test_folders_that_are_missing_broken_or_of_another_kind_are_one_line(tmp_path, folder):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    for load, option, public in (
        (lambda path: MaskedLanguageModel(path, 7), "--mask_lm", "bert-base-uncased"),
        (SentenceEncoder, "--sentence_encoder", "all-MiniLM-L6-v2"),
    ):
        with pytest.raises(MissingPart, match=f"{option} .*{public}") as missing:
            load(str(tmp_path / "none"))
        with pytest.raises(UserError, match=option) as broken:
            load(str(tmp_path))
        assert not isinstance(broken.value, MissingPart)
        assert "\n" not in str(missing.value) + str(broken.value)
    with pytest.raises(UserError, match="--mask_lm"):
        MaskedLanguageModel(str(ZOO / "classify"), 7)


def test_a_package_that_is_not_installed_is_a_missing_part(monkeypatch):
    for package in ("HanTa", "HanTa.HanoverTagger"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPart, match="pip install"):
        english_tagger.__wrapped__()


# Sentence encoder

CLEAN = PromptWords.of("Please tell me whether this film is good or bad")


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return open_sentence_encoder(str(ENCODER))


@pytest.mark.parametrize(("similarity", "cosine"), [(1, 1), (0.5, 0), (0, -1), (2 / 3, 0.5), (0.840845057, 0.877583)])
def test_angular_similarity_by_hand(similarity, cosine):
    assert cosine_at_angular_similarity(similarity) == pytest.approx(cosine, abs=1e-6)


@pytest.mark.parametrize(
    ("one", "other", "cosine"),
    [
        (CLEAN.text, "Please tell me whether this movie is good or bad", 0.957923591),
        ("Judge the text.", "The weather is nice", 0.043520689),
        ("word " * 300, "word " * 200, 0.983783424),  # the first is cut off at 256 tokens
    ],
)
def test_cosines_equal_those_of_sentence_transformers(encoder, one, other, cosine):
    """Computed with sentence-transformers 6.2.0 and the same weights."""
    assert encoder.cosines([(one, other)])[0] == pytest.approx(cosine, abs=1e-6)


TRANSFORMER = {"path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"path": "1_Pooling", "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling"}
DENSE = {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}
ENCODER_WORDS = ["judge", "the", "text", "film", "good", "."]


def write_encoder_files(folder: Path, modules: list[dict], pooling: dict, options: dict | None = None) -> None:
    for name, content in (
        ("modules.json", modules),
        ("1_Pooling/config.json", pooling),
        ("sentence_bert_config.json", options or {}),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("pooling", "longest", "pool"),
    [
        (None, None, lambda states: states.mean(dim=0)),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, 5, lambda states: states.mean(dim=0)),
        ({"pooling_mode": "mean"}, None, lambda states: states.mean(dim=0)),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, None, lambda states: states[0]),
        ({"pooling_mode": ["cls"]}, 5, lambda states: states[0]),
    ],
)
@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_a_texts_own_tokens_are_pooled_as_the_folder_says(tmp_path, pooling, longest, pool, padding_side):
    tokenizer = word_piece_tokenizer(ENCODER_WORDS)
    tokenizer.padding_side = padding_side
    model = write_encoder(tmp_path, tokenizer)
    if pooling is not None:
        options = {} if longest is None else {"max_seq_length": longest}
        write_encoder_files(tmp_path, [TRANSFORMER, POOLING], pooling, options)
    texts = ["judge", "the film", "Judge the good text.", "film " * 30]
    vectors = []
    for text in texts:
        tokens = tokenizer(text, truncation=True, max_length=longest or 64, return_tensors="pt")
        with torch.inference_mode():
            vectors.append(pool(model(**tokens).last_hidden_state[0]))
    pairs = list(combinations(range(len(texts)), 2))
    wanted = [torch.cosine_similarity(vectors[one], vectors[other], dim=0).item() for one, other in pairs]
    found = SentenceEncoder(str(tmp_path)).cosines([(texts[one], texts[other]) for one, other in pairs])
    assert not np.allclose(wanted, wanted[0], atol=0.01)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_an_encoder_that_reads_lower_case_gets_lower_case(tmp_path):
    tokenizer = byte_level_tokenizer(["judge", "Judge"])
    write_encoder(tmp_path, tokenizer)
    pair = [("Judge", "judge")]
    assert SentenceEncoder(str(tmp_path)).cosines(pair)[0] < 0.999
    write_encoder_files(tmp_path, [TRANSFORMER, POOLING], {}, {"do_lower_case": True})
    assert SentenceEncoder(str(tmp_path)).cosines(pair)[0] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("modules", "pooling", "prompt", "reason"),
    [
        ([TRANSFORMER, POOLING], {"pooling_mode_max_tokens": True}, None, "the pooling max"),
        ([TRANSFORMER, POOLING], {"pooling_mode": ["cls", "mean"]}, None, "the pooling cls, mean"),
        ([TRANSFORMER, POOLING, DENSE], {}, None, "the modules Transformer, Pooling, Dense"),
        ([TRANSFORMER], {}, None, "the modules Transformer"),
        ([TRANSFORMER, POOLING], {}, "query", "the default prompt query"),
    ],
)
def test_another_kind_of_encoder_is_one_line(tmp_path, modules, pooling, prompt, reason):
    write_encoder(tmp_path, word_piece_tokenizer(ENCODER_WORDS))
    write_encoder_files(tmp_path, modules, pooling)
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"default_prompt_name": prompt}))
    with pytest.raises(UserError, match=rf"^--sentence_encoder {tmp_path} has {reason}; [^\n]*$") as error:
        SentenceEncoder(str(tmp_path))
    assert not isinstance(error.value, MissingPart)


def test_an_encoder_that_lacks_a_tensor_is_one_line(tmp_path):
    model = write_encoder(tmp_path, word_piece_tokenizer(ENCODER_WORDS))
    state = {name: tensor for name, tensor in model.state_dict().items() if "layer.1.output.dense" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(UserError, match=r"^--sentence_encoder [^\n]* lacks tensor encoder\.layer\.1\.output[^\n]*$"):
        SentenceEncoder(str(tmp_path))


def test_a_cosine_does_not_depend_on_the_other_texts(encoder):
    pair = ("One text", "another text, of more words")
    alone = SentenceEncoder(str(ENCODER)).cosines([pair])
    together = encoder.cosines([("x " * n, "y " * n) for n in range(1, 40)] + [pair])[-1:]
    np.testing.assert_allclose(alone, together, atol=1e-5)
    np.testing.assert_allclose(encoder.cosines([pair[::-1]]), together, atol=1e-6)
    assert encoder.cosines([]).shape == (0,)


def test_windows_surround_the_word_and_stay_inside_the_prompt():
    words = [f"w{n}" for n in range(20)]
    prompt = PromptWords.of(f"({', '.join(words)}.)")
    for index in range(20):
        inside = [words.index(word) for word in window(prompt, index, 5).split(", ")]
        assert len(inside) == 5 and index in inside  # from a word's start to a word's end
    assert window(prompt, 0, 5) == window(prompt, 2, 5) == "w0, w1, w2, w3, w4"
    assert window(prompt, 3, 5) == "w1, w2, w3, w4, w5"
    assert window(prompt, 17, 5) == window(prompt, 19, 5) == "w15, w16, w17, w18, w19"
    assert window(prompt, 3, 25) == ", ".join(words)


def test_only_the_window_around_a_change_in_the_current_prompt_counts(encoder):
    far = CLEAN.replace(8, "cheese").replace(5, "sausage")  # changed before
    candidate = far.replace(3, "porridge")
    limit = float(encoder.cosines([(window(far, 3, 5), window(candidate, 3, 5))])[0])
    assert list(similar_around_change(encoder, limit - 1e-4, 5)(CLEAN, far, [candidate])) == [True]
    assert list(similar_around_change(encoder, limit + 1e-4, 5)(CLEAN, far, [candidate])) == [False]


def test_a_candidate_shorter_than_the_window_passes(encoder):
    candidates = [CLEAN.replace(5, new) for new in ("sausage", "a very long and boring sausage of pork")]
    assert [len(candidate.words) for candidate in candidates] == [10, 17]
    assert list(similar_around_change(encoder, 0.999, 11)(CLEAN, CLEAN, candidates)) == [True, False]


# Parts of speech


@pytest.mark.parametrize(
    ("text", "index", "part"),
    [
        ("the small dog barks loudly", 1, "adjective"),
        ("the small dog barks loudly", 2, "noun"),
        ("the small dog barks loudly", 3, "verb"),
        ("the small dog barks loudly", 4, "adverb"),
        ("you and me", 1, "conjunction"),
        ("with seven of them", 0, "adposition"),
        ("with seven of them", 1, "numeral"),
        ("Please answer him", 2, "pronoun"),
        ("they did not ask", 2, "adverb"),
        ("ask them to answer", 2, "particle"),
        ("they want to play chess", 3, "verb"),
        ("this is a play of", 3, "noun"),
    ],
)
def test_parts_of_speech_in_context(text, index, part):
    words = PromptWords.of(text).words
    assert part_of_speech(words[:index], words[index], words[index + 1 :]) == part


def keeps_part(text: str, word: str, *new: str) -> list[bool]:
    clean = PromptWords.of(text)
    index = clean.words.index(word)
    return [same_part_of_speech(clean, clean, clean.replace(index, each)) for each in new]


def test_a_word_keeps_its_part_of_speech_but_verb_and_noun_may_swap():
    text = "Please determine whether the following sentence is very beautiful"
    assert keeps_part(text, "sentence", "phrase", "find", "quickly") == [True, True, False]
    assert keeps_part(text, "determine", "decide", "decision", "happy") == [True, True, False]
    assert keeps_part(text, "beautiful", "ugly", "beauty") == [True, False]
    assert keeps_part("Judge the sentence now", "sentence", "long text") == [False]


def test_parts_of_speech_are_those_in_the_clean_prompt():
    clean = PromptWords.of("they want to play chess")
    current = clean.replace(2, "a")  # between the current prompt's words, "play" would be a noun
    assert part_of_speech(("they", "want", "a"), "play", ("chess",)) == "noun"
    assert same_part_of_speech(clean, current, current.replace(3, "see"))
    assert not same_part_of_speech(clean, current, current.replace(3, "nicely"))
