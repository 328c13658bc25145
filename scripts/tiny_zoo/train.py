"""Train the tiny models that the demo and the tests merge, and write their held-out test sets.

    python scripts/tiny_zoo/train.py --output_dir scripts/tiny_zoo --seed 0

makes Llama models of a million parameters: `base`, the fine-tunes `instruct`, `math` and `code` of one domain each,
and `classify`, fine-tuned on the prompts that promptbench attacks. `math` gains a `[PAD]` token, as WizardMath does.
`masked`, a BERT, predicts words of those prompts for bertattack. `data` gets the test sets under the names that
`--data_dir` looks for. All text is synthetic, from the templates in corpus.py, sentences.py and masked_model.py. Test
questions never occur in training. Existing models are kept. `bash scripts/demo.sh` scores the models and their merges.
"""

import sys

if __name__ in ("__main__", "__mp_main__"):  # before the imports, which take a while
    from utils.interrupts import prepare_process

    prepare_process(__name__)

import argparse
import copy
import functools
import json
import random
import re
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer, BertForMaskedLM, LlamaForCausalLM, PreTrainedTokenizerFast

from inference_llms.tasks import TASKS as ALL_TASKS
from inference_llms.tasks import alpaca_eval, gsm8k, human_eval
from scripts.tiny_zoo import corpus, sentences, training
from scripts.tiny_zoo import masked_model as masked
from utils.errors import run_command_line
from utils.whole_files import write_json, write_whole

DOMAINS = tuple(corpus.TASKS_OF_ROLE)
TASKS = tuple(corpus.DOMAIN_OF_TASK)
CLASSIFIER = "classify"
MASKED = "masked"
DATA_FILES = {task: ALL_TASKS[task].data_set.files[0] for task in TASKS}


def numbered_rows(task: str, examples: list[corpus.ZooExample]) -> list[dict]:
    """The rows of the task's data file, numbered if its format has numbers."""
    if task == "MATH":
        return [{"idx": f"tiny_zoo_math_{i}", **example.row} for i, example in enumerate(examples)]
    if task == "human_eval":
        return [{"task_id": f"HumanEval/{i}", **example.row} for i, example in enumerate(examples)]
    if task == "mbpp":
        # As in the real test set, numbers start at 11.
        return [{"task_id": i, **example.row} for i, example in enumerate(examples, start=11)]
    return [example.row for example in examples]


def write_data(folder: Path, examples: dict[str, list[corpus.ZooExample]]) -> None:
    """Write the five test sets."""
    for task, of_task in examples.items():
        rows = numbered_rows(task, of_task)
        if task == "alpaca_eval":
            write_json(folder / DATA_FILES[task], rows)
        else:
            write_whole(folder / DATA_FILES[task], "".join(json.dumps(row) + "\n" for row in rows))


def save(model: LlamaForCausalLM | BertForMaskedLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a Hugging Face folder with float16 weights."""
    copy.deepcopy(model).to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # transformers 5 writes a class name that transformers 4 does not know; both know this one.
    path = folder / "tokenizer_config.json"
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"})


def zoo_tokenizer(held_out: frozenset[str], seed: int) -> PreTrainedTokenizerFast:
    """The tokenizer of the Llama models, trained on 20,000 examples of the base's text."""
    rng = random.Random(f"tokenizer {seed}")
    pairs = [corpus.pretraining_pair(rng, rng.choice(DOMAINS), held_out) for _ in range(20_000)]
    fixed_parts = [part for task in (alpaca_eval, gsm8k, human_eval) for part in re.split(r"\{\w+\}", task.PROMPT)]
    return training.train_tokenizer([prompt + completion for prompt, completion in pairs], fixed_parts)


def train_zoo(output: Path, seed: int) -> None:
    """Write the test sets, and train the tokenizer and the models that do not exist yet."""
    examples = corpus.held_out_examples(seed)
    held_out = corpus.held_out_questions(examples)
    write_data(output / "data", examples)
    held_out_samples = sentences.held_out_samples(seed)
    for task, samples in held_out_samples.items():
        write_whole(output / "data" / f"{task}_dev.tsv", sentences.as_file(task, samples))

    if not is_trained(output / "base"):
        train_base(output / "base", held_out, seed)
    for domain in DOMAINS:
        if not is_trained(output / domain):
            # From the files, so that the task vector has the fine-tuning and not the base's rounding.
            fine_tune(*load(output / "base"), domain, held_out, seed, output / domain)
    if not is_trained(output / CLASSIFIER):
        train_classifier(*load(output / "base"), sentences.held_out_texts(held_out_samples), seed, output / CLASSIFIER)
    if not is_trained(output / MASKED):
        train_masked(output / MASKED, seed)


def train_base(folder: Path, held_out: frozenset[str], seed: int) -> None:
    """Train the tokenizer and the base."""
    tokenizer = zoo_tokenizer(held_out, seed)
    base = training.new_model(tokenizer, seed)
    training.train(
        base,
        tokenizer,
        [functools.partial(corpus.pretraining_pair, domain=domain, held_out=held_out) for domain in DOMAINS],
        steps=1200,
        batch_size=24,
        learning_rate=2.5e-3,
        seed=seed,
        name="base",
    )
    save(base, tokenizer, folder)


def fine_tune(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    domain: str,
    held_out: frozenset[str],
    seed: int,
    folder: Path,
) -> None:
    """Train the base `model` on right answers of one domain, and write it to `folder`."""
    if domain == "math":
        training.add_pad_token(model, tokenizer)
    training.train(
        model,
        tokenizer,
        [functools.partial(corpus.answered_pair, domain=domain, held_out=held_out)],
        steps=150,
        batch_size=48,
        # Large enough that a fine-tune forgets some of the other domains, so that λ matters.
        learning_rate=2e-3,
        seed=seed + 1,
        name=domain,
    )
    save(model, tokenizer, folder)


def train_classifier(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, held_out: frozenset[str], seed: int, folder: Path
) -> None:
    """Train the base `model` to classify sentences, in the words of promptbench's prompts, and write it to `folder`."""
    training.train(
        model,
        tokenizer,
        [functools.partial(sentences.classified_pair, task=task, held_out=held_out) for task in sentences.TASKS],
        steps=400,
        batch_size=16,
        learning_rate=2e-3,
        seed=seed + 2,
        name=CLASSIFIER,
    )
    save(model, tokenizer, folder)


def train_masked(folder: Path, seed: int) -> None:
    """Train the masked language model, and write it to `folder`."""
    tokenizer = masked.train_tokenizer(seed)
    model = masked.new_model(tokenizer, seed)
    masked.train(model, tokenizer, steps=1500, seed=seed)
    save(model, tokenizer, folder)


def is_trained(folder: Path) -> bool:
    return (folder / "config.json").exists()


def load(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The model in a folder, in float32, and its tokenizer."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    transformers.utils.logging.disable_progress_bar()
    start = time.monotonic()
    train_zoo(arguments.output_dir, arguments.seed)
    print(f"trained in {(time.monotonic() - start) / 60:.0f} minutes")


if __name__ == "__main__":
    sys.exit(run_command_line(main))
