"""The tiny masked language model, whose predictions bertattack uses as substitutes: text, tokenizer, training.

Made from templates written for this project, under its MIT licence, like all text of the tiny models.
"""

import random
import re
import time

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from promptbench.prompt_task import PLACEHOLDER
from scripts.tiny_zoo.sentences import SAMPLERS

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY_SIZE = 512
CONTEXT_LENGTH = 128
MASKED = 0.15
IGNORED = -100

# Interchangeable words: the substitutions that the model learns.
WORDS = {
    role: words.split()
    for role, words in {
        "as": "as being like",
        "mood": "sentiment mood feeling tone opinion emotion attitude",
        "judge": "classifier judge critic expert reader reviewer grader assistant",
        "decide": "determine decide judge tell say find check state",
        "whether": "whether if",
        "following": "following given provided next attached present",
        "text": "text passage review comment statement piece remark",
        "is": "is seems sounds feels appears looks",
        "please": "please kindly now then simply just only",
        "answer": "respond answer reply react",
        "with": "with by using in",
        "grammar": "grammar syntax language spelling style usage",
        "identification": "identification recognition detection checking analysis assessment",
        "system": "system machine tool program engine model",
        "examine": "examine inspect read study analyse review consider",
        "sentence": "sentence phrase line clause",
        "grammatically": "grammatically formally linguistically perfectly properly wholly",
        "correct": "correct right proper valid sound good",
        "incorrect": "incorrect wrong faulty broken bad flawed",
        "for": "for to on at",
        "ones": "ones sentences phrases lines others",
        "and": "and then",
    }.items()
}
REQUESTS = {
    "sst2": (
        "{as} a {mood} {judge}, {decide} {whether} the {following} {text} {is} 'positive' or 'negative'.",
        "{decide} {whether} the {mood} of this {text} {is} 'positive' or 'negative'.",
        "{please} {answer} {with} 'positive' or 'negative'.",
        "{examine} the {following} {text} {and} {answer} {with} 'positive' or 'negative'.",
    ),
    "cola": (
        "{as} a {grammar} {identification} {system}, {examine} the {following} {sentence} {and} {answer} {with} "
        "'acceptable' {for} {grammatically} {correct} sentences or 'unacceptable' {for} {incorrect} {ones}.",
        "{decide} {whether} the {grammar} of this {sentence} {is} {correct} or {incorrect}.",
        "{please} {answer} {with} 'acceptable' or 'unacceptable'.",
        "{examine} the {following} {sentence} {and} {decide} {whether} it {is} {grammatically} {correct}.",
    ),
}
LEADS = {"sst2": "text", "cola": "sentence"}


def sample_request(rng: random.Random) -> str:
    """A prompt that asks to classify: a request, the sentence or its placeholder, a request."""
    task = rng.choice(tuple(REQUESTS))
    content = PLACEHOLDER if rng.random() < 0.5 else f" {SAMPLERS[task](rng).text}"
    before, after = (_filled(rng, rng.choice(REQUESTS[task])) for _ in range(2))
    return f"{before}\n{rng.choice(WORDS[LEADS[task]])}:{content}\n{after}"


def _filled(rng: random.Random, request: str) -> str:
    return re.sub(r"\{(\w+)\}", lambda role: rng.choice(WORDS[role[1]]), request)


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A lower-case WordPiece tokenizer like BERT's, with a piece for every printable ASCII character."""
    rng = random.Random(f"masked tokenizer {seed}")
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=[chr(code) for code in range(33, 127)],
        show_progress=False,
    )
    tokenizer.train_from_iterator([sample_request(rng) for _ in range(5000)], trainer)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=CONTEXT_LENGTH, **names)


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> BertForMaskedLM:
    """An untrained float32 BERT."""
    torch.manual_seed(seed)
    return BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=128,
            max_position_embeddings=CONTEXT_LENGTH,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train(model: BertForMaskedLM, tokenizer: PreTrainedTokenizerFast, steps: int, seed: int) -> None:
    """Train in place as BERT was: predict 15% of each text's tokens, of which 80% are masked, 10% are replaced by a
    random token and 10% are kept. Prints the mean loss, in nats per predicted token, ten times."""
    rng = random.Random(f"masked {seed}")
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.05)
    model.train()
    losses, start = [], time.monotonic()
    for step in range(steps):
        texts = [sample_request(rng) for _ in range(32)]
        batch = tokenizer(texts, padding=True, return_special_tokens_mask=True, return_tensors="pt")
        ordinary = batch.pop("special_tokens_mask") == 0
        predicted = ordinary & (torch.rand(ordinary.shape) < MASKED)
        labels = torch.where(predicted, batch["input_ids"], IGNORED)
        fate = torch.rand(predicted.shape)
        batch["input_ids"][predicted & (fate < 0.8)] = tokenizer.mask_token_id
        replaced = predicted & (fate >= 0.9)
        batch["input_ids"][replaced] = torch.randint(len(SPECIAL), len(tokenizer), (int(replaced.sum()),))
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % (steps // 10) == 0:
            recent = losses[-(steps // 10) :]
            mean = sum(recent) / len(recent)
            print(f"masked: step {step + 1}/{steps}, loss {mean:.3f}, {time.monotonic() - start:.0f} s", flush=True)
    model.eval()
