"""Tokenizer, model and training loop of the tiny models: a Llama of about a million parameters, on the CPU."""

import math
import random
import time
from collections.abc import Callable, Sequence

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY_SIZE = 1280
CONTEXT_LENGTH = 512
IGNORED = -100


def train_tokenizer(texts: Sequence[str], fixed_texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with `<unk>`, `<s>` (before every prompt) and `</s>`.

    Each number and each of `fixed_texts`, the fixed parts of the prompts, is one pre-token, so that BPE can merge it
    whole. Prompts become short, and training is quick on two cores.
    """
    pieces = [*map(_escaped, fixed_texts), r" ?[A-Za-z]+", r"_[A-Za-z]+", r" ?\d+", r" ?[^\sA-Za-z\d]+", r"\s+"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("|".join(pieces)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT_LENGTH,
    )


def _escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in r".?+*()[]{}|^$\#" else c for c in text)


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """An untrained float32 Llama whose sizes divide between two tensor-parallel workers."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=False,
        )
    )


def add_pad_token(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Add `[PAD]` to the tokenizer, and a row for it to both embedding matrices: the mean of the others."""
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for matrix in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
            matrix[-1] = matrix[:-1].mean(dim=0)


def encode_batch(
    tokenizer: PreTrainedTokenizerFast, pairs: Sequence[tuple[str, str]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels of (prompt, completion) pairs, both [pairs, longest]. Labels are the completion and the
    end-of-sequence token after it; the loss is over these alone."""
    # Without a padding token, pad with the end token: the loss ignores everything after the labels.
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    completions = tokenizer([text for _, text in pairs], add_special_tokens=False)["input_ids"]
    rows = [(p, [*c, tokenizer.eos_token_id]) for p, c in zip(prompts, completions, strict=True)]
    length = max(len(p) + len(c) for p, c in rows)
    ids = torch.full((len(rows), length), padding)
    labels = torch.full((len(rows), length), IGNORED)
    for row, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion)
        ids[row, :end] = torch.tensor(prompt + completion)
        labels[row, len(prompt) : end] = torch.tensor(completion)
    return ids, labels


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    draws: Sequence[Callable[[random.Random], tuple[str, str]]],
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    name: str,
) -> None:
    """Train `model` in place with AdamW: warm-up over a twentieth of `steps`, then a cosine down to zero.

    Each step takes `batch_size` (prompt, completion) pairs from each of `draws`, one micro-batch for each.
    Prints the mean loss, in nats per completion token, twenty times on the way.
    """
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    model.train()
    losses, start = [], time.monotonic()
    for step in range(steps):
        warm = min(1.0, (step + 1) / max(1, steps // 20))
        rate = learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        for draw in draws:
            ids, labels = encode_batch(tokenizer, [draw(rng) for _ in range(batch_size)])
            hidden = model.model(ids).last_hidden_state[:, :-1]
            labelled = labels[:, 1:] != IGNORED
            loss = torch.nn.functional.cross_entropy(model.lm_head(hidden[labelled]), labels[:, 1:][labelled])
            (loss / len(draws)).backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % max(1, steps // 20) == 0:
            recent = losses[-len(draws) * max(1, steps // 20) :]
            means = " ".join(
                f"{sum(recent[i :: len(draws)]) * len(draws) / len(recent):.3f}" for i in range(len(draws))
            )
            print(f"{name}: step {step + 1}/{steps}, loss {means}, {time.monotonic() - start:.0f} s", flush=True)
    model.eval()
