"""Text for the tiny models: synthetic questions and answers from templates.

Written for this project, under its MIT licence, without any data set. Three domains, each with the paper's prompts:
instructions about words (Vicuna chat form), arithmetic (Alpaca form, step by step) and Python functions of one line
(Alpaca form, code). The same random state gives the same text on every machine.
"""

# Word lists read best as prose.
# ruff: noqa: SIM905

import random
from collections.abc import Callable
from dataclasses import dataclass

from inference_llms.tasks import TASKS, TASKS_OF_ROLE

DOMAIN_OF_TASK = {task: domain for domain, tasks in TASKS_OF_ROLE.items() for task in tasks}

# In the base's training text, questions of these kinds usually have an answer; all others usually have a shrug. So the
# base has seen every skill but rarely uses it, like a pretrained model before instruction tuning. The fine-tunes see
# answers only.
ANSWERED_KINDS = {"plural", "repeat", "gains", "product", "add", "above", "larger"}
SHRUG_SHARE, SHRUG_SHARE_OF_ANSWERED_KINDS = 0.6, 0.1
SHRUGS = {
    "instruct": " I am not sure. Please ask someone else.",
    "math": " This is hard, so ask your teacher.",
    "code": "\n# this part is left to the reader\npass",
}

NOUNS = (
    "apple book cat dog pen cup hat boat lamp tree bird ball coin egg shell stamp ring kite drum desk "
    "box bus fox dish brush glass peach bench torch dress"
).split()
ITEMS = "apples books pens cups hats coins eggs shells stamps rings kites balls cards stones beads plums".split()
NAMES = "Ann Ben Carl Dora Emil Fay Gus Hana Ivo Jane Karl Lena Max Nora Otto Pia".split()
OPPOSITES = (
    "hot cold big small old new fast slow wet dry dark light high low rich poor soft hard full empty loud "
    "quiet near far open closed early late strong weak long short thick thin clean dirty happy sad sweet "
    "sour left right up down day night"
).split()
VERBS = "get make find run calc check take solve do fetch build work".split()
PARTS = "value item score point total result mark step unit count rate part".split()
ARGUMENTS = "x n a m y v".split()


@dataclass(frozen=True)
class ZooExample:
    """One question with its right answer.

    `kind` is the required skill. A fine-tune learns to write `completion` after `prompt`. `row` is the example as a
    line of its task's data file, without a number.
    """

    task: str
    kind: str
    question: str
    prompt: str
    completion: str
    row: dict


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("s", "x", "sh", "ch")) else "s")


def _opposite(word: str) -> str:
    return OPPOSITES[OPPOSITES.index(word) ^ 1]


def sample_instruction(rng: random.Random) -> ZooExample:
    """One instruction about words, in AlpacaEval's fields; its answer is unique, so agreement is exact."""
    kind = rng.choice(("opposite", "plural", "capitals", "repeat", "first", "last", "reverse"))
    words = rng.sample(NOUNS, 3)
    word = rng.choice(OPPOSITES) if kind == "opposite" else words[0]
    listed = ", ".join(words)
    wordings, answer = {
        "opposite": (
            ("What is the opposite of {word}?", "Give the opposite of {word}.", "Tell me the opposite of {word}."),
            _opposite(word) if kind == "opposite" else "",
        ),
        "plural": (
            ("What is the plural of {word}?", "Give the plural of {word}.", "Tell me the plural of {word}."),
            _plural(word),
        ),
        "capitals": (
            ("Write {word} in capitals.", "Put {word} in capitals.", "Tell me {word} in capitals."),
            word.upper(),
        ),
        "repeat": (
            ("Say {word} three times.", "Repeat {word} three times.", "Write {word} three times."),
            f"{word} {word} {word}",
        ),
        "first": (("Which comes first: {listed}?", "Give the first of {listed}."), words[0]),
        "last": (("Which comes last: {listed}?", "Give the last of {listed}."), words[2]),
        "reverse": (("Reverse the list {listed}.", "Write backwards: {listed}."), ", ".join(words[::-1])),
    }[kind]
    question = rng.choice(wordings).format(word=word, listed=listed)
    row = {"dataset": "tiny_zoo", "instruction": question, "output": answer, "generator": "reference"}
    return ZooExample("alpaca_eval", kind, question, prompt_of_row("alpaca_eval", row), f" {answer}", row)


def _two_numbers(rng: random.Random, sign: str) -> tuple[int, int, int]:
    if sign == "*":
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        return a, b, a * b
    a, b = rng.randint(2, 19), rng.randint(2, 19)
    return (a, b, a + b) if sign == "+" else (a + b, b, a)


def sample_word_problem(rng: random.Random) -> ZooExample:
    """One arithmetic story of one or two steps, in GSM8K's fields."""
    name, item = rng.choice(NAMES), rng.choice(ITEMS)
    kind = rng.choice(("gains", "loses", "groups", "gains and loses"))
    if kind == "gains":
        a, b, total = _two_numbers(rng, "+")
        story = rng.choice((f"finds {b} more", f"buys {b} more", f"gets {b} more"))
        question = f"{name} has {a} {item} and {story}. How many {item} does {name} have now?"
        steps = f"{a} + {b} = {total}"
    elif kind == "loses":
        a, b, total = _two_numbers(rng, "-")
        story = rng.choice((f"loses {b}", f"sells {b}", f"gives away {b}"))
        question = f"{name} has {a} {item} and {story}. How many {item} does {name} have now?"
        steps = f"{a} - {b} = {total}"
    elif kind == "groups":
        a, b, total = _two_numbers(rng, "*")
        holder = rng.choice(("boxes", "bags", "jars"))
        question = f"{name} has {a} {holder} with {b} {item} each. How many {item} does {name} have?"
        steps = f"{a} * {b} = {total}"
    else:
        a, b, half_way = _two_numbers(rng, "+")
        c = rng.randint(2, min(19, half_way - 1))
        total = half_way - c
        question = f"{name} has {a} {item}, buys {b} more and sells {c}. How many {item} does {name} have now?"
        steps = f"{a} + {b} = {half_way}. {half_way} - {c} = {total}"
    row = {"question": question, "answer": f"{steps}\n#### {total}"}
    return ZooExample("gsm8k", kind, question, prompt_of_row("gsm8k", row), f" {steps}. The answer is: {total}", row)


def sample_expression(rng: random.Random) -> ZooExample:
    """One expression or equation in LaTeX, in the fields of the MATH test set."""
    kind = rng.choice(("sum", "difference", "product", "equation"))
    sign = {"sum": "+", "difference": "-", "product": "*", "equation": "-"}[kind]
    a, b, result = _two_numbers(rng, sign)
    if kind == "equation":
        unknown = rng.choice("xyzabcknpt")
        wording = rng.choice(
            ("Solve ${unknown} + {b} = {a}$ for ${unknown}$.", "If ${unknown} + {b} = {a}$, find ${unknown}$.")
        )
        question = wording.format(unknown=unknown, a=a, b=b)
    else:
        shown = "\\cdot" if sign == "*" else sign
        wording = rng.choice(("Compute ${}$.", "What is ${}$?", "Find the value of ${}$.", "Evaluate ${}$."))
        question = wording.format(f"{a} {shown} {b}")
    steps = f"{a} {sign} {b} = {result}"
    row = {
        "instruction": question,
        "output": f"{steps}, so the result is $\\boxed{{{result}}}$.",
        "input": "",
        "type": "Algebra" if kind == "equation" else "Prealgebra",
    }
    return ZooExample("MATH", kind, question, prompt_of_row("MATH", row), f" {steps}. The answer is: {result}", row)


@dataclass(frozen=True)
class Function:
    """A Python function of one argument and one constant: its description and its code."""

    docstring: str
    request: str
    expression: str
    compute: Callable[[int, int], int | bool]


FUNCTIONS = {
    "add": Function("{x} plus {k}", "add {k} to a number", "{x} + {k}", lambda x, k: x + k),
    "subtract": Function("{x} minus {k}", "subtract {k} from a number", "{x} - {k}", lambda x, k: x - k),
    "from": Function("{k} minus {x}", "subtract a number from {k}", "{k} - {x}", lambda x, k: k - x),
    "multiply": Function("{x} times {k}", "multiply a number by {k}", "{x} * {k}", lambda x, k: x * k),
    "divide": Function("{x} divided by {k}", "divide a number by {k}", "{x} // {k}", lambda x, k: x // k),
    "remainder": Function("{x} modulo {k}", "reduce a number modulo {k}", "{x} % {k}", lambda x, k: x % k),
    "above": Function("whether {x} is above {k}", "check if a number is above {k}", "{x} > {k}", lambda x, k: x > k),
    "below": Function("whether {x} is below {k}", "check if a number is below {k}", "{x} < {k}", lambda x, k: x < k),
    "equal": Function("whether {x} equals {k}", "check if a number equals {k}", "{x} == {k}", lambda x, k: x == k),
    "larger": Function(
        "the larger of {x} and {k}", "find the larger of a number and {k}", "max({x}, {k})", lambda x, k: max(x, k)
    ),
    "smaller": Function(
        "the smaller of {x} and {k}", "find the smaller of a number and {k}", "min({x}, {k})", lambda x, k: min(x, k)
    ),
}
CONSTANTS = range(2, 50)


def sample_function(rng: random.Random, task: str) -> ZooExample:
    """One Python function to write, in the fields of HumanEval or MBPP as `task` says.

    `question` leaves out the function's name, so that tests ask for functions that never occur in training under any
    name.
    """
    kind, k = rng.choice(list(FUNCTIONS)), rng.choice(CONSTANTS)
    function = FUNCTIONS[kind]
    # MBPP leaves the argument's name open; one fixed name there makes the answer unique.
    x = rng.choice(ARGUMENTS) if task == "human_eval" else "n"
    name = f"{rng.choice(VERBS)}_{rng.choice(PARTS)}"
    # One value on each side of the constant and the constant itself: a wrong comparison fails.
    values = [k + rng.randint(1, 9), k, rng.randint(0, k - 1)]
    rng.shuffle(values)
    results = [function.compute(value, k) for value in values]
    body = f"return {function.expression.format(x=x, k=k)}"
    question = function.request.format(k=k)
    if task == "human_eval":
        docstring = function.docstring.format(x=x, k=k)
        problem = (
            f'def {name}({x}):\n    """Return {docstring}.\n    >>> {name}({values[0]})\n    {results[0]}\n    """\n'
        )
        checks = "".join(f"    assert candidate({v}) == {r}\n" for v, r in zip(values, results, strict=True))
        row = {
            "prompt": problem,
            "entry_point": name,
            "canonical_solution": f"    {body}\n",
            "test": f"def check(candidate):\n{checks}",
        }
    else:
        text = f"Write a function to {question}."
        tests = [f"assert {name}({v}) == {r}" for v, r in zip(values, results, strict=True)]
        row = {
            "text": text,
            "code": f"def {name}({x}):\n    {body}",
            "test_list": tests,
            "test_setup_code": "",
            "challenge_test_list": [],
        }
    return ZooExample(task, kind, question, prompt_of_row(task, row), f"\ndef {name}({x}):\n\t{body}", row)


def prompt_of_row(task: str, row: dict) -> str:
    """The paper's prompt for a row of the task's data file (with or without a number)."""
    return TASKS[task].make_prompt({"task_id": None, **row})


def sample_example(rng: random.Random, task: str) -> ZooExample:
    """One random example of `task` (alpaca_eval, gsm8k, MATH, human_eval or mbpp)."""
    if task == "alpaca_eval":
        return sample_instruction(rng)
    if task == "gsm8k":
        return sample_word_problem(rng)
    if task == "MATH":
        return sample_expression(rng)
    return sample_function(rng, task)


def held_out_examples(seed: int, size: int = 60) -> dict[str, list[ZooExample]]:
    """For each task, `size` test examples with distinct questions."""
    examples = {}
    for task in DOMAIN_OF_TASK:
        rng = random.Random(f"test {task} {seed}")
        by_question: dict[str, ZooExample] = {}
        while len(by_question) < size:
            example = sample_example(rng, task)
            by_question.setdefault(example.question, example)
        examples[task] = list(by_question.values())
    return examples


def held_out_questions(examples: dict[str, list[ZooExample]]) -> frozenset[str]:
    """The questions that no training text may ask."""
    return frozenset(example.question for of_task in examples.values() for example in of_task)


def training_example(rng: random.Random, domain: str, held_out: frozenset[str]) -> ZooExample:
    """One random example of `domain` (instruct, math or code) whose question is not in `held_out`."""
    while True:
        example = sample_example(rng, rng.choice(TASKS_OF_ROLE[domain]))
        if example.question not in held_out:
            return example


def answered_pair(rng: random.Random, domain: str, held_out: frozenset[str]) -> tuple[str, str]:
    """A (prompt, completion) pair for a fine-tune: always the right answer."""
    example = training_example(rng, domain, held_out)
    return example.prompt, example.completion


def pretraining_pair(rng: random.Random, domain: str, held_out: frozenset[str]) -> tuple[str, str]:
    """A (prompt, completion) pair for the base: the right answer or, often, a shrug."""
    example = training_example(rng, domain, held_out)
    share = SHRUG_SHARE_OF_ANSWERED_KINDS if example.kind in ANSWERED_KINDS else SHRUG_SHARE
    return example.prompt, SHRUGS[domain] if rng.random() < share else example.completion
