"""Evaluators' results are read, and refused if they belong to other answers or only to some."""

import json
import os
from pathlib import Path

import pytest

from inference_llms.evaluators import bigcode_harness, human_eval, livebench
from inference_llms.evaluators.results import hash_lines, hashes_file, run_evaluator
from tests.inference_llms.support import read_json_lines, write_rows
from utils.errors import UserError

MBPP, CODING = bigcode_harness.EVALUATOR, livebench.PROGRAM_JUDGE


@pytest.fixture
def answers(tmp_path) -> list[Path]:
    """Answers to two tasks of a category, where LiveBench expects them."""
    files = []
    for task in ("LCB_generation", "coding_completion"):
        path = tmp_path / "coding" / task / "model_answer" / "math_code_TIES.jsonl"
        rows = [{"question_id": f"{task}{n}", "model_id": "math_code_TIES", "tstamp": 100.0 + n} for n in (1, 2)]
        write_rows(path, rows)
        files.append(path)
    return files


def judge(path: Path, scores: list[float], time: float = 200.0, model: str = "math_code_ties") -> None:
    task = path.parents[1].name
    rows = [
        {"question_id": f"{task}{n}", "task": task, "model": model, "score": score, "turn": 1, "tstamp": time}
        for n, score in enumerate(scores, 1)
    ]
    write_rows(livebench.judgments_file(path), rows)


def test_livebenchs_judgments_are_read_task_by_task(answers):
    assert CODING.read(answers) is None
    judge(answers[0], [1, 0])
    judge(answers[1], [0.5, 1])
    found = CODING.read(answers)
    assert (found.score, found.examples, found.values) == (0.625, 4, (1.0, 0.0, 0.5, 1.0))
    assert found.ids[0] == "LCB_generation1"


@pytest.mark.parametrize("second", [[1], None])
def test_judgments_of_some_answers_are_not_a_score(answers, second):
    judge(answers[0], [1, 0])
    if second is not None:
        judge(answers[1], second)
    with pytest.raises(UserError, match=r"lacks 1 of the 2|judged only 2"):
        CODING.read(answers)


@pytest.mark.parametrize("changes", [{"time": 50.0}, {"model": "another"}])
def test_judgments_of_other_answers_are_ignored(answers, changes):
    for path in answers:
        judge(path, [1, 1], **changes)
    assert CODING.read(answers) is None


def test_an_answer_with_a_line_separator_inside_is_one_answer(answers):
    (path, other) = answers
    rows = [{**row, "choices": [{"turns": ["one\u2028two\x85three"]}]} for row in read_json_lines(path)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    judge(path, [1, 1])
    judge(other, [1, 1])
    assert CODING.read(answers).score == 1


@pytest.fixture
def programs(tmp_path) -> list[Path]:
    path = tmp_path / "average_merging.jsonl"
    path.write_text(json.dumps([["print(1)"], ["print(2)"], []]))
    return [path]


def judge_with_harness(programs: list[Path], metrics: str = '{"mbpp": {"pass@1": 0.5}, "config": {}}') -> Path:
    result = bigcode_harness.metrics_file(programs)
    result.write_text(metrics)
    hashes_file(result).write_text(hash_lines(programs))
    return result


def with_old_time(programs: Path, result: Path) -> None:
    programs.write_text(json.dumps([["other"], ["programs"], ["now"]]))
    os.utime(programs, (0, 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_old_time, "belongs to another version of average_merging.jsonl"),
        (lambda programs, result: hashes_file(result).unlink(), "nothing shows which programs it belongs to"),
        (lambda programs, result: hashes_file(result).write_text("0.5"), "is not in the format of sha256sum"),
    ],
)
def test_a_result_needs_the_hashes_of_its_programs(programs, change, message):
    change(programs[0], judge_with_harness(programs))
    with pytest.raises(UserError, match=message):
        MBPP.read(programs)


@pytest.mark.parametrize("score", ['"x"', "NaN", "90", "-0.1", "true", "null", "[]"])
def test_a_score_is_a_number_from_0_to_1(programs, answers, score):
    judge_with_harness(programs, f'{{"mbpp": {{"pass@1": {score}}}}}')
    for path in answers:
        judge(path, [json.loads(score), 1])
    for evaluator, files in ((MBPP, programs), (CODING, answers)):
        with pytest.raises(UserError, match=r"not a number from 0 to 1; remove it"):
            evaluator.read(files)


@pytest.mark.parametrize("metrics", ["[]", "{}", '{"mbpp": 1}', '{"mbpp": {}}', "{"])
def test_a_harness_result_of_another_form_is_one_line(programs, metrics):
    assert MBPP.read(programs) is None
    judge_with_harness(programs, metrics)
    with pytest.raises(UserError, match=r"remove it, and the"):
        MBPP.read(programs)


def test_tests_that_changed_since_the_judgment_are_noticed(programs, tmp_path):
    tests, results = tmp_path / "mbpp.test.jsonl", human_eval.results_file(programs)
    tests.write_text("tests")
    write_rows(results, [{"completion": f"print({n})", "passed": True} for n in (1, 2)])
    hashes_file(results).write_text(hash_lines([*programs, tests]))
    assert MBPP.read(programs).score == 1
    tests.write_text("other tests")
    with pytest.raises(UserError, match=r"another version of mbpp\.test\.jsonl"):
        MBPP.read(programs)
    tests.unlink()  # as on another machine
    assert MBPP.read(programs).score == 1


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        ("Traceback\nKeyError: 'a'\n", "KeyError: 'a'"),
        ("Traceback\nLookupError: \n*****\n  Resource punkt_tab not found.\n  Searched in:\n*****\n",
         "LookupError: Resource punkt_tab not found."),
        ("\n", "status 3"),
    ],
)  # fmt: skip
def test_a_failed_evaluators_reason_is_one_line_with_words(printed, reason):
    with pytest.raises(UserError, match=f"sh failed: {reason}$"):
        run_evaluator(["sh", "-c", 'printf "%s" "$0" >&2; exit 3', printed])


def test_the_printed_command_names_the_place_of_the_harness_result(tmp_path):
    programs = tmp_path / "a b.jsonl"
    command = MBPP.full_command([programs], "accelerate")
    assert f"--metric_output_path '{bigcode_harness.metrics_file([programs])}'" in command
