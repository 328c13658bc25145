"""Every task, on rows of our own in the sets' forms, and compared with the published scripts."""

import json
from dataclasses import astuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_llms.prompt_format import PromptFormat
from inference_llms.run_tasks import task_health
from inference_llms.task import LENIENT, Example
from inference_llms.tasks import LIVEBENCH_TASKS, MATH, TASKS, TASKS_OF_ROLE, gsm8k, role_of_task
from tests.inference_llms.support import (
    DATA,
    OWN_DATA,
    golden,
    needs_data,
    needs_golden,
    read_json_lines,
    replay,
    write_rows,
)

ALPACA_FILE = "out/save_gen_instruct_responses_results/single_model/alpaca_eval/model.json"
# Of each task: the end of its first prompt, and completions with the rules that accept them.
OWN = {
    "alpaca_eval": ("USER: Name a colour. ASSISTANT:", [(" Green. ", "is_right"), ("Hello!", "")]),
    "gsm8k": (
        "Instruction:\nA jar holds 12 pears. Kim eats 5. How many are left?\n\n### Response: Let's think step by step.",
        [
            (" 12 - 5 = 7. The answer is: 7", "accuracy lenient_accuracy"),
            (" 1,200 * 2 is 2,400.", "lenient_accuracy"),
            (" The answer is: -5 degrees. Not 3.", "accuracy lenient_accuracy"),
        ],
    ),
    "MATH": (
        "### Instruction:\nWhat is $\\frac{1}{4}+\\frac{1}{4}$?\n\n### Response: Let's think step by step.",
        [
            (" The answer is: 0.5.", "accuracy lenient_accuracy"),
            (" So $\\boxed{\\sqrt{12}}$.", "lenient_accuracy"),
            (" The answer is: 6 cm", ""),
        ],
    ),
    "human_eval": (
        'Create a Python script for this problem:\ndef double(x):\n\t"""Twice x."""\n\n\n### Response:',
        [("```python\ndef double(x):\n\treturn x + x\n```", "passes"), ("def first(items):\n    return items", "")],
    ),
    "mbpp": (
        "Create a Python script for this problem:\n\nWrite a function to count the letters of a word.\n"
        "Test examples:\nassert letters('abc') == SIZE\n\n### Response:",
        [
            ("Sure:\n```python\ndef letters(word): return len(word)\n```", "passes"),
            ("def check(n): return n + 1", "passes"),
        ],
    ),
    "instruction_following": ("Rewrite this in one sentence: It rains.", []),
    "coding": ("Write a program that prints 1.", []),
    "typos": (
        "Please output this exact text, fixing the misspellings.\n\n### Text with errors:\nTeh cat sat.\n\n"
        "### Response: the corrected paragraph is:",
        [("Sure:\nThe cat sat.", "accuracy livebench_accuracy")],
    ),
}


def test_all_tasks_are_found_in_the_papers_order():
    assert list(TASKS) == list(OWN)
    assert TASKS_OF_ROLE == {"instruct": ("alpaca_eval",), "math": ("gsm8k", "MATH"), "code": ("human_eval", "mbpp")}
    assert LIVEBENCH_TASKS == ("instruction_following", "coding", "typos")
    assert [role_of_task(task, ["math", "code"]) for task in ("mbpp", "typos")] == ["code", "math"]


@pytest.mark.parametrize("name", OWN)
def test_prompts_and_verdicts_on_made_up_rows(name, tmp_path):
    task, (prompt, cases) = TASKS[name], OWN[name]
    examples = task.load_examples(OWN_DATA)
    assert examples[0].prompt.endswith(prompt)
    for example, (completion, accepting) in zip(examples, cases, strict=False):
        rules = {**task.metrics, **({} if task.metrics else {"is_right": task.is_right})}
        if task.program is not None:
            rules = {"passes": lambda text, row, example=example: task.verdicts([example], [text])[0]}
        if task.lenient is not None:
            rules[LENIENT] = lambda text, row, example=example: task.lenient_verdicts([example], [text])[0]
        found = {rule for rule, holds in rules.items() if holds(completion, example.row)}
        assert found == set(accepting.split()), completion
    if task.metrics:
        rows = [{"id": example.id, "completion": text} for example, (text, _) in zip(examples, cases, strict=True)]
        write_rows(tmp_path / f"replay/{name}.jsonl", rows)
        score = replay(tmp_path, "--tasks", name, "--data_dir", OWN_DATA)[name]
        for metric in (*task.metrics, *([LENIENT] if task.lenient else [])):
            assert score[metric] == sum(metric in accepting.split() for _, accepting in cases) / len(cases)


def test_alpaca_evals_files_hold_answers_and_references(tmp_path):
    write_rows(tmp_path / "replay/alpaca_eval.jsonl", [{"id": n, "completion": f" reply {n} "} for n in range(2)])
    score = replay(tmp_path, "--tasks", "alpaca_eval", "--data_dir", OWN_DATA)["alpaca_eval"]
    path = tmp_path / ALPACA_FILE
    row = {"instruction": "Name a colour.", "output": " reply 0 ", "generator": "some/model", "dataset": "own"}
    assert json.loads(path.read_text())[0] == row
    references = path.with_name("model.references.json")
    assert json.loads(references.read_text()) == json.loads((OWN_DATA / "alpaca_eval.json").read_text())
    assert (
        f"alpaca_eval --model_outputs {path} --reference_outputs {references} "
        "--annotators_config weighted_alpaca_eval_gpt-4o-mini-2024-07-18 --fn_metric get_winrate --sort_by win_rate "
    ) in score["evaluator_command"]


DOUBLE = Example(0, "?", {"prompt": 'def double(x):\n    """Twice x."""\n'})


@pytest.mark.parametrize(
    ("name", "completion", "is_readable"),
    [
        ("gsm8k", " 4 + 1 = 5. The answer is: 5", True),
        ("gsm8k", " 4 + 1 = 5, so the answer is 5", False),
        ("gsm8k", " The answer is: five", False),
        ("MATH", " The answer is: \\frac{1}{2}.", True),
        ("MATH", " So we get $\\boxed{5}$", False),
        ("MATH", " The answer is: .\n", False),
        ("human_eval", "```python\ndef double(x):\n    return 2 * x\n```", True),
        ("human_eval", "Sure, here", False),
        ("human_eval", "I cannot write this program.", False),
        ("human_eval", "def double(x):\n    return 2 *", False),
        ("mbpp", "def double(x):\n    return '\\d'", True),
        ("mbpp", "Here is the program:\n```\ndef double(x):\n    return 2 * x\n```", False),
        ("mbpp", "(" * 3000, False),
        ("mbpp", "x = 1\0", False),
        ("coding", "Here:\n```python\nprint(1)\n```", True),
        ("coding", "print(1)", False),
        ("instruction_following", "The answer is: yes.", True),
        ("instruction_following", "The answer is: .\n", False),
        ("alpaca_eval", "?", None),
        ("typos", "?", None),
    ],
)
def test_a_task_says_whether_an_answer_can_be_read(name, completion, is_readable):
    health = task_health(TASKS[name], [DOUBLE], [completion], [False])
    assert health.unreadable == (None if is_readable is None else int(not is_readable))


@needs_golden
@needs_data
@pytest.mark.parametrize("name", ["alpaca_eval", "gsm8k", "MATH", "human_eval", "mbpp"])
def test_prompts_and_sampling_agree_with_the_published_scripts(name):
    expected = golden(name)
    examples = TASKS[name].load_examples(None if name == "human_eval" else DATA)
    assert examples[0].prompt == expected["prompt_example"]
    assert_same_sampling(name, expected["sampling"])
    if name == "mbpp":
        assert next(example.prompt for example in examples if example.id == 493) == expected["prompt_493"]


def assert_same_sampling(name: str, expected: dict) -> None:
    stop = tuple(expected.get("stop", ()))
    assert astuple(TASKS[name].sampling) == (expected["max_tokens"], stop, expected["temperature"], expected["top_p"])


@needs_golden
def test_livebenchs_prompt_and_sampling_agree_with_the_published_scripts():
    turn = "Please output this exact text, fixing the misspellings.\n\nTeh cat sat.\n\nSecond para."
    assert TASKS["typos"].make_prompt({"turns": [turn]}) == golden("livebench")["typos"]["prompt_example"]
    for name in ("instruction_following", "typos"):
        assert_same_sampling(name, golden("livebench")[name]["sampling"])


@needs_golden
@needs_data
def test_alpaca_evals_rows_have_the_published_form(tmp_path):
    expected, examples = golden("alpaca_eval"), TASKS["alpaca_eval"].load_examples(DATA)
    write_rows(
        tmp_path / "replay/alpaca_eval.jsonl",
        [{"id": example.id, "completion": f" reply {example.id} "} for example in examples],
    )
    assert replay(tmp_path, "--tasks", "alpaca_eval", "--data_dir", DATA)["alpaca_eval"]["examples"] == expected["rows"]
    written = json.loads((tmp_path / ALPACA_FILE).read_text())
    assert list(written[0]) == list(expected["row_example"])
    assert {**written[0], "generator": "save_merge_models/x"} == expected["row_example"]


@needs_golden
@needs_data
def test_every_number_and_verdict_agrees_with_the_published_scripts():
    for row in golden("gsm8k")["rows"]:
        assert gsm8k.extract_number(row["completion"]) == row["extracted"], row
    examples = TASKS["MATH"].load_examples(DATA)
    for row in golden("MATH")["rows"]:
        example = examples[row["index"]]
        assert MATH.last_boxed(example.row["output"]) == row["gold"]
        assert MATH.is_right(row["completion"], example.row) == row["correct"], row


@needs_golden
@needs_data
@pytest.mark.parametrize("name", ["human_eval", "mbpp"])
def test_every_program_agrees_with_the_published_scripts(name, tmp_path):
    rows = golden(name)["rows"]
    write_rows(tmp_path / f"replay/{name}.jsonl", [{**row, "id": row["task_id"]} for row in rows])
    data = [] if name == "human_eval" else ["--data_dir", DATA]
    replay(tmp_path, "--tasks", name, "--end_index", len(rows), *data)
    path = tmp_path / f"out/save_gen_codes_results/single_model/{name}/model.jsonl"
    if name == "mbpp":
        assert json.loads(path.read_text()) == [row["processed"] for row in rows] + [[]] * (500 - len(rows))
        return
    for written, published in zip(read_json_lines(path), rows, strict=True):
        assert list(written) == golden(name)["row_keys"] and written["task_id"] == published["task_id"]
        assert written["completion"] == published["processed"]
        assert written["all_code"] == published["completion"].replace("\t", "    ")


ANSWERS = st.text(alphabet="0123456789.,/()=-−e$ \\n{}\\") | st.sampled_from(
    ["\\boxed{5}", "#### 5", "Response: 5", "5 (since 3)"]
)


@settings(max_examples=50, deadline=None)
@given(st.lists(ANSWERS, min_size=1, max_size=4))
def test_what_is_right_strictly_is_right_leniently(parts):
    completion = "The answer is: ".join(["", *parts])
    number, expression = gsm8k.extract_number(completion), MATH.extract_answer(completion)
    for task, row in ((gsm8k, {"answer": f"#### {number}"}), (MATH, {"output": f"\\boxed{{{expression}}}"})):
        example = Example(0, "?", row)
        if task.is_right(completion, row):
            assert task.TASK.lenient_verdicts([example], [completion]) == [True]


@pytest.mark.parametrize("stop", gsm8k.TASK.sampling.stop)
def test_the_lenient_reading_ends_at_a_stop_word(stop):
    text = f"So \\boxed{{7}}.\n\n### {stop} The answer is: 8, \\boxed{{8}}"
    rows = {gsm8k: {"answer": "#### 7"}, MATH: {"output": "\\boxed{7}"}}
    for task, row in rows.items():
        example = Example(0, "?", row)
        assert task.TASK.lenient_verdicts([example], [text]) == [True]
        assert task.TASK.in_format(PromptFormat("chat")).lenient_verdicts([example], [text]) == [False], "has no stops"


@needs_data
@pytest.mark.parametrize(("name", "number"), [("gsm8k", 1319), ("MATH", 500)])
def test_every_reference_solution_is_leniently_right(name, number):
    examples = TASKS[name].load_examples(DATA)
    solutions = [example.row["answer" if name == "gsm8k" else "output"] for example in examples]
    assert TASKS[name].lenient_verdicts(examples, solutions) == [True] * number
    wrong = TASKS[name].lenient_verdicts(examples, [*solutions[1:], solutions[0]])
    assert sum(wrong) == {"gsm8k": 15, "MATH": 6}[name]  # neighbours with the same answer


@needs_data
@pytest.mark.parametrize(("name", "number"), [("gsm8k", 1319), ("MATH", 500)])
def test_perfect_completions_of_a_published_set_are_all_right(name, number, tmp_path):
    gold = {
        "gsm8k": lambda row: f"{gsm8k.gold_number(row):.0f}",
        "MATH": lambda row: f"{MATH.last_boxed(row['output'])}.",
    }
    examples = TASKS[name].load_examples(DATA)
    rows = [{"id": example.id, "completion": f" So. The answer is: {gold[name](example.row)}"} for example in examples]
    write_rows(tmp_path / f"replay/{name}.jsonl", rows)
    score = replay(tmp_path, "--tasks", name, "--data_dir", DATA)[name]
    assert (score["accuracy"], score["lenient_accuracy"], score["examples"]) == (1.0, 1.0, number)
    assert score["lenient_version"] == TASKS[name].lenient.version and score["packages"]["math-verify"]
