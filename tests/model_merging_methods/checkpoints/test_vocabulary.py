"""Vocabularies that differ by added tokens."""

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from model_merging_methods.checkpoints.vocabulary import MISSING_ROW, Vocabulary, align_vocabularies
from model_merging_methods.merge_folders import merge_folders
from tests.model_merging_methods.merges import AVERAGE, request
from tests.model_merging_methods.small_models import WORDS, save_model, small_tokenizer

BASE = {"a": 0, "b": 1, "c": 2}


def test_equal_vocabularies_need_no_alignment():
    aligned = align_vocabularies(Vocabulary(BASE, 3), [Vocabulary(dict(BASE), 3)])
    assert (aligned.rows, aligned.row_maps) == (3, (None, None))


def test_added_tokens_follow_the_base_in_model_order():
    first, second = {**BASE, "[PAD]": 3, "<x>": 4}, {**BASE, "<x>": 3, "<y>": 4}
    aligned = align_vocabularies(Vocabulary(BASE, 3), [Vocabulary(first, 5), Vocabulary(second, 5)])
    assert aligned.tokens == {**BASE, "[PAD]": 3, "<x>": 4, "<y>": 5}
    missing = MISSING_ROW
    assert aligned.row_maps == (
        [0, 1, 2, missing, missing, missing],
        [0, 1, 2, 3, 4, missing],
        [0, 1, 2, missing, 3, 4],
    )


def test_the_same_row_under_two_names_is_two_tokens():
    base, other = {**BASE, "<pad>": 3}, {**BASE, "[PAD]": 3}
    aligned = align_vocabularies(Vocabulary(base, 4), [Vocabulary(other, 4)])
    assert aligned.tokens == {**BASE, "<pad>": 3, "[PAD]": 4}
    assert aligned.row_maps[1] == [0, 1, 2, MISSING_ROW, 3]


def test_unnamed_rows_are_matched_by_position():
    padded = Vocabulary({**BASE, "[PAD]": 3}, 8)
    aligned = align_vocabularies(Vocabulary(BASE, 6), [padded])
    assert aligned.rows == 8
    assert aligned.row_maps[0] == [0, 1, 2, 3, 4, 5, MISSING_ROW, MISSING_ROW]
    assert aligned.row_maps[1] is None


def test_an_unnamed_row_belongs_to_a_token_that_moved_from_there():
    math, code = Vocabulary({**BASE, "<math>": 3}, 4), Vocabulary({**BASE, "<code>": 3}, 4)
    aligned = align_vocabularies(Vocabulary(BASE, 4), [math, code])
    assert aligned.tokens == {**BASE, "<math>": 3, "<code>": 4}
    assert aligned.row_maps == ([0, 1, 2, 3, 3], [0, 1, 2, 3, MISSING_ROW], [0, 1, 2, MISSING_ROW, 3])


def test_a_token_without_a_row_in_its_model_adds_none():
    aligned = align_vocabularies(Vocabulary(BASE, 3), [Vocabulary({**BASE, "[PAD]": 3}, 3)])
    assert (aligned.rows, aligned.row_maps) == (3, (None, None))


def test_a_token_without_a_row_yields_to_another_model_s_row(tmp_path):
    """math names [PAD] without a row for it; code has a row there, for another token."""
    base = save_model(tmp_path / "base", seed=0)
    math = save_model(tmp_path / "math", seed=1, base=base)
    small_tokenizer(("[PAD]",)).save_pretrained(math)
    save_model(tmp_path / "code", seed=2, base=base, added_tokens=("<pad>",))
    targets = {role: tmp_path / "merged" / role for role in ("math", "code")}
    merge_folders(request(tmp_path, AVERAGE, ("math", "code")), targets)
    own = Tokenizer.from_file(str(targets["math"] / "tokenizer.json"))
    assert own.token_to_id("[PAD]") is None
    assert Tokenizer.from_file(str(targets["code"] / "tokenizer.json")).token_to_id("<pad>") == len(WORDS)


@pytest.fixture(scope="module")
def merged_with_added_tokens(tmp_path_factory):
    """An average of two fine-tunes that added different tokens at the same id."""
    root = tmp_path_factory.mktemp("vocabulary")
    base = save_model(root / "base", seed=0)
    save_model(root / "math", seed=1, base=base, added_tokens=("[PAD]",))
    save_model(root / "code", seed=2, base=base, added_tokens=("<tab>", "[PAD]"))
    targets = {role: root / "merged" / role for role in ("math", "code")}
    merge_folders(request(root, AVERAGE, ("math", "code")), targets)
    return root, targets


@pytest.mark.parametrize(("role", "pad", "tab"), [("math", 0, None), ("code", 0, 1)])
def test_tokenizers_have_the_merged_ids(merged_with_added_tokens, role, pad, tab):
    _, targets = merged_with_added_tokens
    tokenizer = AutoTokenizer.from_pretrained(targets[role])
    assert tokenizer.convert_tokens_to_ids("[PAD]") == len(WORDS) + pad
    assert tokenizer("what is two [PAD]", add_special_tokens=False)["input_ids"] == [3, 4, 5, len(WORDS) + pad]
    if tab is not None:
        assert tokenizer.convert_tokens_to_ids("<tab>") == len(WORDS) + tab
        assert tokenizer.decode([5, len(WORDS) + tab], skip_special_tokens=True).strip() == "two"
