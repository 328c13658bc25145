"""Small real checkpoints for tests, written by transformers, and changes to them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["<unk>", "<s>", "</s>", "what", "is", "two", "and", "three", "five", "the", "answer", "four"]
WEIGHTS = "model.safetensors"
Tensors = dict[str, torch.Tensor]


def save_model(
    folder: Path,
    seed: int,
    added_tokens: tuple[str, ...] = (),
    base: Path | None = None,
    dtype: torch.dtype = torch.float32,
    tied: bool = False,
    padding_rows: int = 0,
    hidden_size: int = 16,
) -> Path:
    """A Llama of a few thousand parameters, or a fine-tune of `base`: its weights plus small noise, with a row for
    every token of `added_tokens`, and a tokenizer of a dozen words."""
    torch.manual_seed(seed)
    rows = len(WORDS) + len(added_tokens) + padding_rows
    if base is None:
        model = LlamaForCausalLM(small_config(rows, tied, hidden_size))
    else:
        model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
        model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for parameter in model.parameters():
            changed = torch.rand_like(parameter) < 0.9
            parameter += 0.01 * changed * torch.randn_like(parameter)
    model.to(dtype).save_pretrained(folder)
    small_tokenizer(added_tokens).save_pretrained(folder)
    return folder


def save_models(root: Path, roles: Sequence[str], **options) -> Path:
    """`root`/base and a fine-tune of it for each role."""
    base = save_model(root / "base", seed=0, **options)
    for seed, role in enumerate(roles, start=1):
        save_model(root / role, seed, base=base, **options)
    return root


def save_family(root: Path, config, roles: Sequence[str], auto_class=AutoModelForCausalLM) -> Path:
    """The same for any architecture."""
    torch.manual_seed(0)
    model = auto_class.from_config(config)
    for role in ("base", *roles):
        model.save_pretrained(root / role)
        small_tokenizer().save_pretrained(root / role)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.002 * torch.randn_like(parameter)
    return root


def small_config(rows: int, tied: bool = False, hidden_size: int = 16) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=rows,
        hidden_size=hidden_size,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )


def small_tokenizer(added_tokens: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(added_tokens)} if added_tokens else {})
    return tokenizer


def change_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    tensors = change(load_file(folder / WEIGHTS))
    save_file({n: tensor.clone().contiguous() for n, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})


def change_json(path: Path, *removed: str, **changes) -> None:
    content = {**(json.loads(path.read_text()) if path.exists() else {}), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in removed}))
