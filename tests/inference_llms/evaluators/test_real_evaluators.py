"""The printed commands, run by the real evaluators where scripts/setup_evaluators.sh has installed them."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from inference_llms.evaluators import evalplus
from inference_llms.evaluators.livebench import FOLDER, judgments_file
from inference_llms.evaluators.results import EVALUATORS, SET_UP, check_versions
from inference_llms.task import AnswerFiles
from inference_llms.tasks import TASKS
from ood_robust_inference import main as ood_main
from tests.commands import run_here
from tests.inference_llms.evaluators.judge_server import judge_server
from tests.inference_llms.support import (
    DATA,
    ZOO,
    needs_data,
    read_json_lines,
    run_command_here,
    write_rows,
)
from utils.errors import UserError


def needs(tool: str):
    reason = f"run `bash scripts/setup_evaluators.sh {tool}` for this test"
    return pytest.mark.skipif(not (EVALUATORS / tool / SET_UP).is_file(), reason=reason)


def run_printed(command: str, home: Path, **variables: str) -> str:
    """Run a command as printed, from an empty home folder and without a network."""
    home.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "OPENAI_"))}
    environment |= {"HOME": str(home), "HF_HUB_OFFLINE": "1", **variables}
    done = subprocess.run(["bash", "-c", command], cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def score(tmp_path: Path, task: str, *options: object) -> dict:
    """The record of answers that are replayed from tmp_path/replay."""
    own = ["--backend", "replay", "--replay_from", tmp_path / "replay", "--output_dir", tmp_path / "out"]
    done = run_command_here("--load_model_path", "some/model", "--tasks", task, *own, *options)
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "out/save_scores/single_model/model.json").read_text())[task]


@pytest.fixture
def references(tmp_path):
    rows = [{"instruction": f"Name {n} colours.", "output": "Red.", "dataset": "own"} for n in range(4)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data/alpaca_eval.json").write_text(json.dumps([{**row, "generator": "reference"} for row in rows]))
    write_rows(tmp_path / "replay/alpaca_eval.jsonl", [{"id": n, "completion": f"Blue {n}."} for n in range(4)])
    return tmp_path / "data"


@needs("alpaca_eval")
def test_alpaca_eval_judges_every_answer_on_a_local_server(references, tmp_path):
    with judge_server() as (url, requests):
        options = ("--judge_base_url", url, "--judge_model", "judge")
        record = score(tmp_path, "alpaca_eval", "--data_dir", references, *options)
        printed = run_printed(record["evaluator_command"], tmp_path / "home")
        assert "win_rate" in printed and len(requests) == 4 and {one["model"] for one in requests} == {"judge"}
        # Our own call of the evaluator finds the verdicts in the command's cache.
        files = AnswerFiles(TASKS["alpaca_eval"], tuple(map(Path, record["files"])), record["evaluator_command"])
        TASKS["alpaca_eval"].evaluator.run(files)
        assert len(requests) == 4
    verdicts = TASKS["alpaca_eval"].evaluator.read(files.files)
    first, second = 0.8176, 0.1824  # of e^-0.2 and e^-1.7, for the answer shown first and second
    assert all(min(abs(value - first), abs(value - second)) < 1e-4 for value in verdicts.values)
    assert f"{100 * verdicts.score:.2f}" in printed and verdicts.examples == 4


@needs("evalplus")
def test_evalplus_takes_the_programs_as_they_are(tmp_path):
    problems = read_json_lines(ZOO / "data/HumanEval.jsonl")
    plus = [
        {**{name: problem[name] for name in ("task_id", "prompt", "entry_point", "canonical_solution")},
         "contract": "", "base_input": [[1], [41]], "plus_input": [[7], [-3]], "atol": 0}
        for problem in problems
    ]  # fmt: skip
    write_rows(tmp_path / "plus.jsonl", plus)
    right = [problem["prompt"] + problem["canonical_solution"] for problem in problems]
    completions = [program if number % 3 else "def other():\n    pass" for number, program in enumerate(right)]
    rows = [{"id": p["task_id"], "completion": text} for p, text in zip(problems, completions, strict=True)]
    write_rows(tmp_path / "replay/human_eval.jsonl", rows)
    record = score(tmp_path, "human_eval", "--data_dir", ZOO / "data")
    assert record["evalplus_command"] is None, "EvalPlus refuses files with fewer than its own problems"
    file = tmp_path / "out/save_gen_codes_results/single_model/human_eval/model.evalplus.jsonl"
    command = f"{EVALUATORS}/evalplus/bin/evalplus.evaluate --dataset humaneval --samples {file} --parallel 2"
    printed = run_printed(command, tmp_path / "home", HUMANEVAL_OVERRIDE_PATH=str(tmp_path / "plus.jsonl"))
    assert printed.count("pass@1:\t0.667") == 2, printed
    results = json.loads(evalplus.results_file(file).read_text())
    assert len(results["eval"]) == len(problems)
    score(tmp_path, "human_eval", "--data_dir", ZOO / "data", "--overwrite")
    assert evalplus.results_file(file).is_file(), "the programs are the same"
    write_rows(tmp_path / "replay/human_eval.jsonl", [{**row, "completion": "    pass"} for row in rows])
    score(tmp_path, "human_eval", "--data_dir", ZOO / "data", "--overwrite")
    assert not evalplus.results_file(file).is_file(), "EvalPlus would repeat the results of other programs"


@needs("evalplus")
@needs_data
def test_evalplus_takes_mbpp_with_the_tasks_outside_the_papers_part(tmp_path):
    known = {row["task_id"]: row for row in read_json_lines(DATA / "mbpp.test.jsonl")}
    rows = [known.get(number, {**known[11], "task_id": number}) for number in evalplus.MBPP_IDS]
    write_rows(tmp_path / "data/mbpp.test.jsonl", rows)
    wrong, right = "def add(a, b): return 0", "def add(a, b): return a + b"
    completions = [f"```python\n{right if number % 4 else wrong}\n```" for number in evalplus.MBPP_IDS]
    replayed = [{"id": row["task_id"], "completion": text} for row, text in zip(rows, completions, strict=True)]
    write_rows(tmp_path / "replay/mbpp.jsonl", replayed)
    plus = [
        {"task_id": f"Mbpp/{number}", "prompt": "", "entry_point": "add", "canonical_solution": right, "contract": "",
         "assertion": "assert add(1, 2) == 3", "base_input": [[1, 2]], "plus_input": [[3, 4]], "atol": 0}
        for number in (6, 7, 8, 9)
    ]  # fmt: skip
    write_rows(tmp_path / "plus.jsonl", plus)
    command = score(tmp_path, "mbpp", "--data_dir", tmp_path / "data")["evalplus_command"]
    printed = run_printed(command, tmp_path / "home", MBPP_OVERRIDE_PATH=str(tmp_path / "plus.jsonl"))
    assert printed.count("pass@1:\t0.750") == 2, printed


def test_the_command_for_evalplus_needs_every_problem(tmp_path):
    write_rows(tmp_path / "replay/human_eval.jsonl", [{"id": f"HumanEval/{n}", "completion": "x"} for n in range(164)])
    assert "--dataset humaneval" in score(tmp_path, "human_eval")["evalplus_command"]


def test_a_judge_is_chosen_by_its_options_alone(references, tmp_path):
    published = score(tmp_path, "alpaca_eval", "--data_dir", references)["evaluator_command"]
    assert "--annotators_config weighted_alpaca_eval_gpt-4o-mini-2024-07-18 --fn_metric get_winrate" in published
    of_paper = score(tmp_path, "alpaca_eval", "--data_dir", references, "--annotators_config", "chatgpt_fn")
    assert "--annotators_config chatgpt_fn" in of_paper["evaluator_command"]
    own = score(tmp_path, "alpaca_eval", "--data_dir", references, "--judge_model", "gpt-5")["evaluator_command"]
    folder = Path(own.partition("--annotators_config ")[2].split()[0])
    config = yaml.safe_load((folder / "configs.yaml").read_text())["judge"]
    assert config["completions_kwargs"]["model_name"] == "gpt-5" and Path(config["prompt_template"]).is_file()
    caches = {command.partition("--caching_path ")[2].split()[0] for command in (published, own)}
    assert len(caches) == 2, "verdicts of one judge must not be taken for another's"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--judge_base_url", "http://127.0.0.1:9/v1"], "--judge_base_url http://127.0.0.1:9/v1: no server answers"),
        (["--judge_base_url", "localhost"], "--judge_base_url localhost: is not a URL; give it with http://"),
        (["--annotators_config", "a", "--judge_model", "b"], "--annotators_config brings its own model"),
    ],
)
def test_a_judge_that_cannot_work_gets_one_line(references, options, reason, tmp_path):
    own = ["--backend", "replay", "--replay_from", tmp_path / "replay", "--output_dir", tmp_path / "out"]
    words = ["--load_model_path", "some/model", "--tasks", "alpaca_eval", "--data_dir", references]
    done = run_command_here(*words, *own, *options)
    assert done.returncode == 2 and reason in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_tool_of_the_wrong_version_gets_one_line(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 0.6.6 3.0.1\n")
    python.chmod(0o755)
    with pytest.raises(
        UserError, match=r"pandas 3\.0\.1 is installed there, and <3 works; run `bash scripts/setup_evaluators.sh it`"
    ):
        check_versions(str(tmp_path / "alpaca_eval"), {"alpaca_eval": ">=0.6.6,<0.7", "pandas": "<3"}, "it")


@needs("bigcode-evaluation-harness")
@needs_data
def test_the_bigcode_harness_judges_the_whole_set(tmp_path):
    rows = sorted(read_json_lines(DATA / "mbpp.test.jsonl"), key=lambda row: row["task_id"])
    right = [{"id": row["task_id"], "completion": f"```python\n{row['code']}\n```"} for row in rows]
    wrong = [{"id": row["task_id"], "completion": "def wrong():\n    return None"} for row in rows]
    write_rows(tmp_path / "replay/mbpp.jsonl", right[:250] + wrong[250:])
    record = score(tmp_path, "mbpp", "--data_dir", DATA)
    (tmp_path / "home/mbpp").mkdir(parents=True)  # in place of the hub's
    write_rows(tmp_path / "home/mbpp/test.jsonl", rows)
    result = run_printed(record["evaluator_command"], tmp_path / "home")
    found = float(re.search(r'"pass@1": ([0-9.]+)', result)[1])
    assert 0.494 <= found <= 0.5, "two of the set's own solutions may fail there"


# What a line of a title and a question's keywords follows, and what it does not.
FOLLOWED = {"detectable_format:title", "keywords:existence", "keywords:forbidden_words"}
IGNORED = {"detectable_content:postscript", "startend:end_checker", "startend:quotation"}


def title_and_keywords(question: dict) -> tuple[str, float]:
    """An answer and LiveBench's score of it: the mean of the share of instructions that it follows, and whether it
    follows all. For the other instructions, some of which need NLTK's data, an empty answer, which scores 0."""
    names = question["instruction_id_list"]
    if not set(names) <= FOLLOWED | IGNORED:
        return "", 0.0
    keywords = [word for options in question["kwargs"] for word in options.get("keywords") or ()]
    share = sum(name in FOLLOWED for name in names) / len(names)
    return f"<<Title>> {' '.join(keywords)}", (share + (share == 1)) / 2


def score_livebench(tmp_path: Path, task: str, data: Path, answers: dict[str, str]) -> dict:
    """The record of these answers, by id, to LiveBench's questions."""
    write_rows(tmp_path / f"replay/{task}.jsonl", [{"id": name, "completion": text} for name, text in answers.items()])
    own = ["--backend", "replay", "--replay_from", tmp_path / "replay", "--output_dir", tmp_path / "out"]
    done = run_here(ood_main, ["--load_model_path", "some/model", "--evaluate_task", task, "--data_dir", data, *own])
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "out/save_scores/single_model/model.json").read_text())[task]


def check_livebench(tmp_path: Path, task: str, data: Path, record: dict, expected: dict[str, float]) -> None:
    """LiveBench's scores by the printed command, and by our own call, must be as `expected`."""
    evaluator, files = TASKS[task].evaluator, tuple(map(Path, record["files"]))
    run_printed(record["evaluator_command"], tmp_path / "home")
    by_command = evaluator.read(files)
    assert dict(zip(by_command.ids, by_command.values, strict=True)) == pytest.approx(expected)
    for file in files:
        judgments_file(file).unlink()
    evaluator.run(AnswerFiles(TASKS[task], files, record["evaluator_command"], data))
    assert evaluator.read(files).values == by_command.values


@needs("livebench")
def test_livebench_runs_programs(tmp_path, guarded):
    stdin = {"input": "2\n", "output": "4\n", "testtype": "stdin"}
    call = {"input": "2", "output": "4", "testtype": "functional"}
    method = "```python\nclass Solution:\n    def double(self, x):\n        return {}\n```"
    programs = {
        "reads": (stdin, "```python\nprint(2 * int(input()))\n```", 1),
        "prints": (stdin, "```python\nprint(5)\n```", 0),
        "right": (call, method.format("2 * x"), 1),
        "wrong": (call, method.format("x"), 0),
    }
    questions = [
        {"question_id": name, "category": "coding", "task": "LCB_generation", "turns": ["Double it."],
         "question_title": name, "public_test_cases": json.dumps([case]), "private_test_cases": json.dumps([case]),
         "original_json": {"metadata": json.dumps({"func_name": "double"} if case is call else {})},
         "livebench_release_date": "2024-06-24", "livebench_removal_date": ""}
        for name, (case, _, _) in programs.items()
    ]  # fmt: skip
    data = tmp_path / "data"
    write_rows(data / "live_bench/coding/LCB_generation/question.jsonl", questions)
    record = score_livebench(tmp_path, "coding", data, {name: text for name, (_, text, _) in programs.items()})
    old = FOLDER / "data/m3_model/coding/old_task"  # of another run of the same name
    write_rows(old / "question.jsonl", [{**questions[0], "task": "old_task"}])
    expected = {name: value for name, (_, _, value) in programs.items()}
    check_livebench(tmp_path, "coding", data, record, expected)


@needs("livebench")
@needs_data
def test_livebench_scores_every_answer(tmp_path):
    questions = TASKS["instruction_following"].load_examples(DATA)
    answers = {question.id: title_and_keywords(question.row) for question in questions}
    record = score_livebench(
        tmp_path, "instruction_following", DATA, {name: text for name, (text, _) in answers.items()}
    )
    expected = {name: value for name, (_, value) in answers.items()}
    assert max(expected.values()) > 0
    check_livebench(tmp_path, "instruction_following", DATA, record, expected)
