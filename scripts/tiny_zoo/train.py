"""Train the tiny models that the demo and the tests merge, and write their held-out test sets.

    python scripts/tiny_zoo/train.py --output_dir scripts/tiny_zoo --seed 0

makes Llama-architecture models of about a million parameters: `base`, and `instruct`, `math` and `code`,
each fine-tuned from it in one domain, and `classify`, fine-tuned on the prompts that promptbench attacks; `math`
gains a `[PAD]` token, as WizardMath does. `masked`, a BERT, guesses words of those prompts, for bertattack. `data` gets
the test sets under the names that `--data_dir` looks for. All text is synthetic, made from the templates in
corpus.py, sentences.py and masked_model.py, which were written for this project and are under its
MIT licence. No test question is ever asked in training. A model that is there already is left as it is. Ends with a
table of the models' scores and of merges over λ; `--evaluate_only` prints the table for models that are there already.
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
from itertools import combinations
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer, BertForMaskedLM, LlamaForCausalLM, PreTrainedTokenizerFast

from inference_llms.evaluators.programs import programs_pass
from inference_llms.tasks import MATH, alpaca_eval, gsm8k, human_eval, mbpp
from scripts.tiny_zoo import corpus, scores, sentences, training
from scripts.tiny_zoo import masked_model as masked
from utils.errors import UserError, run_command_line
from utils.whole_files import write_json, write_whole

DOMAINS = tuple(corpus.TASKS_OF_DOMAIN)
TASKS = tuple(corpus.DOMAIN_OF_TASK)
CLASSIFIER = "classify"
MASKED = "masked"
RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
DATA_FILES = {module.TASK.name: module.DATA_SET.files[0] for module in (alpaca_eval, gsm8k, MATH, human_eval, mbpp)}


def numbered_rows(task: str, examples: list[corpus.Example]) -> list[dict]:
    """The rows of the task's data file, with the field that numbers them where the format has one."""
    if task == "MATH":
        return [{"idx": f"tiny_zoo_math_{i}", **example.row} for i, example in enumerate(examples)]
    if task == "human_eval":
        return [{"task_id": f"HumanEval/{i}", **example.row} for i, example in enumerate(examples)]
    if task == "mbpp":
        # The numbers of the real test set start at 11 too.
        return [{"task_id": i, **example.row} for i, example in enumerate(examples, start=11)]
    return [example.row for example in examples]


def write_data(folder: Path, examples: dict[str, list[corpus.Example]]) -> None:
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
    """The tokenizer of the Llama models, trained on 20,000 examples of the base's own text."""
    rng = random.Random(f"tokenizer {seed}")
    pairs = [corpus.pretraining_pair(rng, rng.choice(DOMAINS), held_out) for _ in range(20_000)]
    fixed_parts = [part for task in (alpaca_eval, gsm8k, human_eval) for part in re.split(r"\{\w+\}", task.PROMPT)]
    return training.train_tokenizer([prompt + completion for prompt, completion in pairs], fixed_parts)


def train_zoo(output: Path, seed: int) -> None:
    """Train the tokenizer, the base and the fine-tunes that are not there yet, and write them and the test sets."""
    examples = corpus.held_out_examples(seed)
    held_out = corpus.held_out_questions(examples)
    write_data(output / "data", examples)
    held_out_samples = sentences.held_out_samples(seed)
    for task, samples in held_out_samples.items():
        write_whole(output / "data" / f"{task}_dev.tsv", sentences.as_file(task, samples))

    if not is_there(output / "base"):
        train_base(output / "base", held_out, seed)
    for domain in DOMAINS:
        if not is_there(output / domain):
            # From the files, so that the task vector is the fine-tuning and not the rounding of the base.
            fine_tune(*load(output / "base"), domain, held_out, seed, output / domain)
    if not is_there(output / CLASSIFIER):
        train_classifier(*load(output / "base"), sentences.held_out_texts(held_out_samples), seed, output / CLASSIFIER)
    if not is_there(output / MASKED):
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


def is_there(folder: Path) -> bool:
    return (folder / "config.json").exists()


def load(folder: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A model folder, in float32."""
    if not is_there(folder):
        raise UserError(f"{folder}: no model here; leave --evaluate_only out to train it")
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def weighted_sum(base: LlamaForCausalLM, models: list[LlamaForCausalLM], weights: list[float]) -> LlamaForCausalLM:
    """Σ weights·models in the shape of `base`: rows of added tokens are left out (the merging job aligns
    them; no prompt here uses any)."""
    merged = copy.deepcopy(base)
    with torch.no_grad():
        for target, *terms in zip(merged.parameters(), *(model.parameters() for model in models), strict=True):
            target.copy_(sum(weight * term[: len(target)] for weight, term in zip(weights, terms, strict=True)))
    return merged


def models_to_compare(zoo: dict[str, LlamaForCausalLM]) -> dict[str, LlamaForCausalLM]:
    """The four models, their interpolations two by two over λ, and task arithmetic (θ0 + Σ δ)."""
    base = zoo["base"]
    models = dict(zoo)
    for first, second in combinations(DOMAINS, 2):
        for ratio in RATIOS:
            pair = [zoo[first], zoo[second]]
            models[f"{first} & {second}, λ {ratio}"] = weighted_sum(base, pair, [ratio, 1 - ratio])
    for size in (2, 3):
        for together in combinations(DOMAINS, size):
            thetas = [base, *(zoo[domain] for domain in together)]
            name = f"{' & '.join(together)}, task arithmetic"
            models[name] = weighted_sum(base, thetas, [1 - size] + [1.0] * size)
    return models


def evaluate(output: Path) -> None:
    """Print the scores, in percent, of the four models and of their merges on the five test sets."""
    loaded = {name: load(output / name) for name in ("base", *DOMAINS)}
    models = models_to_compare({name: model for name, (model, _) in loaded.items()})
    tokenizer = loaded["base"][1]
    examples = {}
    for task, name in DATA_FILES.items():
        text = (output / "data" / name).read_text(encoding="utf-8")
        examples[task] = json.loads(text) if task == "alpaca_eval" else [json.loads(row) for row in text.splitlines()]

    right: dict[tuple[str, str], list[bool]] = {}
    programs: list[tuple[str, str, dict, str]] = []
    for model_name, model in models.items():
        for task, rows in examples.items():
            completions = scores.complete(model, tokenizer, [corpus.prompt_of_row(task, row) for row in rows])
            if task in ("human_eval", "mbpp"):
                problems = [scores.as_problem(task, row) for row in rows]
                codes = [scores.extract_program(task, completion) for completion in completions]
                programs += [(model_name, task, *pair) for pair in zip(problems, codes, strict=True)]
            else:
                pairs = zip(completions, rows, strict=True)
                right[model_name, task] = [scores.answer_is_right(task, *pair) for pair in pairs]
    passed = programs_pass([(problem, program) for *_, problem, program in programs])
    for (model_name, task, *_), ok in zip(programs, passed, strict=True):
        right.setdefault((model_name, task), []).append(ok)

    print("| model |", " | ".join(TASKS), "|")
    print("|---|" + "---:|" * len(TASKS))
    for model_name in models:
        cells = (f"{100 * sum(r) / len(r):.0f}" for r in (right[model_name, task] for task in TASKS))
        print(f"| {model_name} |", " | ".join(cells), "|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate_only", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    transformers.utils.logging.disable_progress_bar()
    start = time.monotonic()
    if not arguments.evaluate_only:
        train_zoo(arguments.output_dir, arguments.seed)
        print(f"trained in {(time.monotonic() - start) / 60:.0f} minutes")
    evaluate(arguments.output_dir)


if __name__ == "__main__":
    sys.exit(run_command_line(main))
