"""A Llama of a million parameters with random weights, and a tokenizer for it."""

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 256
BEGIN, END, CUT = 1, 2, 3

PROMPTS = [f"Question {number}: how many apples are left{' and pears' * (number % 7)}?" for number in range(40)]


def write_tiny_llama(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write the model to `folder`: no padding token, a begin token added by the tokenizer, two tokens that end
    a completion (the tokenizer's and one that only the generation config names).

    Its initial weights are ten times the usual, which makes the likeliest token likelier than the next by
    far more than rounding: greedy completions of two engines then differ only if one is wrong.
    """
    special = ["<unk>", "<s>", "</s>", "<cut>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    words = [first + second for first in string.ascii_lowercase for second in "aeiou"]
    tokenizer.train_from_iterator([*PROMPTS, *(f"{a} {b}{a}" for a in words for b in words)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEGIN)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer.get_vocab()),
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            initializer_range=0.2,
            bos_token_id=BEGIN,
            eos_token_id=END,
        )
    )
    model.generation_config.eos_token_id = [END, CUT]
    model.to(dtype).save_pretrained(folder)
    return folder
