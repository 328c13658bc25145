"""Tokenizers in all the files in which models come."""

import base64
import io
import json
import re
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer

from model_merging_methods.checkpoints.tokenizer_reading import check_tokenizers, read_tokens
from model_merging_methods.checkpoints.vocabulary import write_tokenizer
from tests.model_merging_methods.merges import AVERAGE, merge
from tests.model_merging_methods.small_models import WORDS, change_json, save_model, save_models, small_tokenizer
from utils.errors import UserError
from utils.findings import Findings

TEXT = "what is two and three ? the answer is five ."


def settings(folder: Path, **content) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(content))


def sentence_pieces(folder: Path, name: str, tokenizer_class: str, **special: str) -> None:
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 20), model_writer=trained, vocab_size=40, hard_vocab_limit=False,
        model_type="bpe" if tokenizer_class == "LlamaTokenizer" else "unigram", minloglevel=2,
    )  # fmt: skip
    (folder / name).write_bytes(trained.getvalue())
    settings(folder, tokenizer_class=tokenizer_class, **special)


def merges(folder: Path) -> None:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = BpeTrainer(special_tokens=["<unk>", "<s>", "</s>"], vocab_size=40, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 20, trainer)
    tokenizer.model.save(str(folder))
    settings(folder, tokenizer_class="GPT2Tokenizer", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def words(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *TEXT.split()]))
    settings(folder, tokenizer_class="BertTokenizer")


def tekken(folder: Path) -> None:
    ranks = [{"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode(), "token_str": None} for i in range(256)]
    special = [{"rank": i, "token_str": token, "is_control": True} for i, token in enumerate(("<unk>", "<s>", "</s>"))]
    config = {"pattern": "[a-z]+|.", "num_vocab_tokens": 256, "default_vocab_size": 259, "version": "v3"}
    config["default_num_special_tokens"] = 3
    content = {"config": config, "vocab": ranks, "special_tokens": special}
    (folder / "tekken.json").write_text(json.dumps(content))
    settings(folder, tokenizer_class="PreTrainedTokenizerFast")


def padding_beside(folder: Path) -> None:
    small_tokenizer().save_pretrained(folder)
    content = json.loads((folder / "tokenizer_config.json").read_text())
    settings(folder, **content, pad_token="[PAD]")


def legacy_added(folder: Path) -> None:
    sentence_pieces(folder, "tokenizer.model", "LlamaTokenizer")
    rows = len(read_tokens(folder))
    (folder / "added_tokens.json").write_text(json.dumps({"<extra>": rows}))


KINDS = {
    "tokenizer.json": lambda folder: small_tokenizer(("<|im_end|>",)).save_pretrained(folder),
    "a padding token in the settings alone": padding_beside,
    "added_tokens.json": legacy_added,
    "vocab.txt": words,
    "vocab.json and merges.txt": merges,
    "tokenizer.model": lambda folder: sentence_pieces(folder, "tokenizer.model", "LlamaTokenizer"),
    "sentencepiece.bpe.model": lambda f: sentence_pieces(f, "sentencepiece.bpe.model", "XLMRobertaTokenizer"),
    "tekken.json": tekken,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_folder_has_the_tokens_of_its_model(tmp_path, kind):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    KINDS[kind](source)
    tokens = read_tokens(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    assert tokens == tokenizer.get_vocab()
    write_tokenizer(source, target, tokens)
    assert AutoTokenizer.from_pretrained(target)(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert {path.name for path in target.iterdir()} == {path.name for path in source.iterdir()}


@pytest.mark.parametrize("kind", ["tokenizer.json", "a padding token in the settings alone", "added_tokens.json"])
def test_added_tokens_move_to_their_merged_rows(tmp_path, kind):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    KINDS[kind](source)
    tokens = read_tokens(source)
    last = max(tokens, key=tokens.__getitem__)
    merged = {**tokens, "<other>": tokens[last], last: tokens[last] + 1}
    write_tokenizer(source, target, merged)
    before, after = (
        AutoTokenizer.from_pretrained(folder)(f"{TEXT} {last}")["input_ids"] for folder in (source, target)
    )
    assert after == [merged[last] if row == tokens[last] else row for row in before]
    assert merged[last] in after


def test_tiktoken_files_of_tokenizers_with_code_are_read_without_it(tmp_path):
    ranks = [base64.b64encode(word).decode() + f" {row}\n" for row, word in enumerate((b"a", b" a", b"\xff"))]
    (tmp_path / "qwen.tiktoken").write_text("".join(ranks))
    (tmp_path / "tokenization_qwen.py").write_text("raise SystemExit('code of a checkpoint was run')")
    classes = {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]}
    settings(tmp_path, tokenizer_class="QWenTokenizer", auto_map=classes)
    assert read_tokens(tmp_path) == {"a": 0, "Ġa": 1, "ÿ": 2}


STAND_INS = {
    "a Git LFS pointer": ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    "a web page": ("<!DOCTYPE html><html>Access denied</html>", "web page"),
    "garbage": ("no tokenizer", "cannot be loaded|is not a tokenizer"),
    "another program's file": ('{"model": {"vocab": {"a": "b"}}, "added_tokens": 1}', "cannot be loaded|is not a tok"),
}


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
@pytest.mark.parametrize("kind", STAND_INS)
def test_a_file_that_is_not_a_tokenizer_is_called_that(tmp_path, kind, name):
    content, message = STAND_INS[kind]
    (tmp_path / name).write_text(content)
    settings(tmp_path, tokenizer_class="LlamaTokenizer", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    with pytest.raises(UserError, match=message) as raised:
        read_tokens(tmp_path)
    assert name in str(raised.value) and "\n" not in str(raised.value)


def renamed(folder: Path, rename) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"] = {rename(token, row): row for token, row in content["model"]["vocab"].items()}
    content["added_tokens"] = []
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text("{}")


def appending(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"] = {"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]}
    (folder / "tokenizer.json").write_text(json.dumps(content))


ODD = {
    "of another order": (lambda f: renamed(f, lambda _, row: WORDS[-row - 1]), True, "12 of 12 shared tokens"),
    "of other words": (lambda f: renamed(f, lambda token, row: token if row < 3 else f"x{row}"), True, "only 3 are"),
    "of few words": (lambda f: renamed(f, lambda token, row: WORDS[row % 5]), True, "names 5 tokens, .* 12 vocabulary"),
    "without its vocabulary": (lambda f: (f / "tokenizer.json").unlink(), False, "gets the tokenizer of pretrained"),
    "empty": (lambda f: (f / "tokenizer.json").write_text(""), False, "no vocabulary in the folder"),
    "with an end token after prompts": (lambda f: appending(f), False, "adds </s> to the end of every prompt"),
    "with add_eos_token": (lambda f: settings(f, eos_token="</s>", add_eos_token=True), False, "adds </s> to the end"),
    "with two tokens more": (lambda f: small_tokenizer(("<a>", "<b>")).save_pretrained(f), False, None),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_tokenizer_that_does_not_fit_is_reported(tmp_path, kind):
    change, is_error, message = ODD[kind]
    for role in ("pretrained", "math"):
        small_tokenizer().save_pretrained(tmp_path / role)
    change(tmp_path / "math")
    findings = Findings()
    folders = {role: tmp_path / role for role in ("pretrained", "math")}
    check_tokenizers(folders, dict.fromkeys(folders, len(WORDS)), findings)
    assert bool(findings.errors) == is_error
    assert not findings.found if message is None else re.search(message, findings.found[0].text)


@pytest.fixture
def models(tmp_path) -> Path:
    base = save_model(tmp_path / "base", seed=0)
    for seed, role in enumerate(("instruct", "math"), start=1):
        save_model(tmp_path / role, seed, base=base, added_tokens=(f"<{role}>",))
    return tmp_path


def merged(models: Path, role: str) -> Path:
    merge(models, models / "merged", AVERAGE, role=role)
    return models / "merged"


@pytest.mark.parametrize("has_template", [True, False], ids=["template", "sequence of processors"])
def test_ids_in_post_processor_padding_and_configs_move_with_their_tokens(models, has_template):
    """math's added token, at another model's merged row, begins every prompt."""
    row = len(WORDS)
    path = models / "math" / "tokenizer.json"
    content = json.loads(path.read_text())
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<math>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<math>": {"id": "<math>", "ids": [row], "tokens": ["<math>"]}},
    }
    content["post_processor"] = template if has_template else {"type": "Sequence", "processors": [template]}
    content["padding"] = {
        "strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None, "pad_id": row, "pad_type_id": 0,
        "pad_token": "<math>",
    }  # fmt: skip
    path.write_text(json.dumps(content))
    for name in ("config.json", "generation_config.json"):
        change_json(models / "math" / name, bos_token_id=row, eos_token_id=[2, row])

    folder = merged(models, "math")
    assert AutoTokenizer.from_pretrained(folder)("is two")["input_ids"] == [row + 1, 4, 5]
    padded = Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch(["is", "is two"])
    assert [encoded.ids for encoded in padded] == [[row + 1, row + 1, 4], [row + 1, 4, 5]]
    for name in ("config.json", "generation_config.json"):
        written = json.loads((folder / name).read_text())
        assert (written["bos_token_id"], written["eos_token_id"]) == (row + 1, [2, row + 1])


def test_a_model_without_a_vocabulary_gets_the_pretrained_model_s(tmp_path):
    save_models(tmp_path, ("instruct", "math"))
    (tmp_path / "math" / "tokenizer.json").unlink()
    settings(tmp_path / "math", tokenizer_class="LlamaTokenizer", bos_token="<s>")
    folder = merged(tmp_path, "math")
    assert AutoTokenizer.from_pretrained(folder)("what is two")["input_ids"] == [3, 4, 5]
    assert "no vocabulary in the folder" in (folder / "README.md").read_text()


def test_processors_and_all_chat_templates_come_along(models):
    tokenizer = AutoTokenizer.from_pretrained(models / "math")
    tokenizer.chat_template = {"default": "{{ messages[0].content }}", "tool_use": "TOOLS {{ messages[0].content }}"}
    tokenizer.save_pretrained(models / "math")
    (models / "math" / "preprocessor_config.json").write_text("{}")
    folder = merged(models, "math")
    chat = [{"role": "user", "content": "hi"}]
    written = AutoTokenizer.from_pretrained(folder)
    assert written.apply_chat_template(chat, tokenize=False, chat_template="tool_use") == "TOOLS hi"
    assert (folder / "preprocessor_config.json").exists()
