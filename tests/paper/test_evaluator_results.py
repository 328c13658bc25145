"""What evaluators leave is read in their forms, and not where it is of other answers, or of some only."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from scripts.paper_tables.evaluator_results import (
    command_to_type,
    harness_metrics_file,
    livebench_judgments,
    program_results_file,
    read_livebench,
    read_programs,
)
from scripts.paper_tables.judged_files import hash_lines, hashes_file, keep_hash_lines
from tests.inference_llms.support import read_json_lines, write_rows
from utils.errors import UserError


@pytest.fixture
def answers(tmp_path) -> list[Path]:
    """Answers to two tasks of a category, in LiveBench's places."""
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
    write_rows(livebench_judgments(path), rows)


def test_livebenchs_judgments_are_read_task_by_task(answers):
    assert read_livebench(answers) is None
    judge(answers[0], [1, 0])
    judge(answers[1], [0.5, 1])
    found = read_livebench(answers)
    assert (found.score, found.examples, found.values) == (0.625, 4, (1.0, 0.0, 0.5, 1.0))


@pytest.mark.parametrize("second", [[1], None])
def test_judgments_of_some_answers_are_no_score(answers, second):
    judge(answers[0], [1, 0])
    if second is not None:
        judge(answers[1], second)
    with pytest.raises(UserError, match=r"lacks 1 of the 2|judged only 2"):
        read_livebench(answers)


@pytest.mark.parametrize("about", [{"time": 50.0}, {"model": "another"}])
def test_judgments_of_other_answers_are_not_taken(answers, about):
    for path in answers:
        judge(path, [1, 1], **about)
    assert read_livebench(answers) is None


def test_an_answer_with_a_line_separator_inside_is_one_answer(answers):
    (path, other) = answers
    rows = [{**row, "choices": [{"turns": ["one\u2028two\x85three"]}]} for row in read_json_lines(path)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    judge(path, [1, 1])
    judge(other, [1, 1])
    assert read_livebench(answers).score == 1


@pytest.fixture
def programs(tmp_path) -> Path:
    path = tmp_path / "average_merging.jsonl"
    path.write_text(json.dumps([["print(1)"], ["print(2)"], []]))
    return path


def judge_with_harness(programs: Path, metrics: str = '{"mbpp": {"pass@1": 0.5}, "config": {}}') -> None:
    harness_metrics_file(programs).write_text(metrics)
    keep_hash_lines(harness_metrics_file(programs), hash_lines([programs]))


def test_a_harness_that_reports_only_the_sum_gives_that(programs):
    assert read_programs("mbpp", programs) is None
    judge_with_harness(programs)
    found = read_programs("mbpp", programs)
    assert (found.score, found.examples, found.values) == (0.5, 2, None)


def with_old_time(programs: Path) -> None:
    programs.write_text(json.dumps([["other"], ["programs"], ["now"]]))
    os.utime(programs, (0, 0))


def without_hashes(programs: Path) -> None:
    hashes_file(harness_metrics_file(programs)).unlink()


def with_broken_hashes(programs: Path) -> None:
    hashes_file(harness_metrics_file(programs)).write_text("0.5")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (with_old_time, "was found with another average_merging.jsonl"),
        (without_hashes, "nothing shows which programs it judged"),
        (with_broken_hashes, "is not what sha256sum writes"),
    ],
)
def test_a_result_is_taken_only_with_what_it_judged(programs, change, told):
    judge_with_harness(programs)
    change(programs)
    with pytest.raises(UserError, match=told):
        read_programs("mbpp", programs)


@pytest.mark.parametrize("score", ['"x"', "NaN", "90", "-0.1", "true", "null", "[]"])
def test_a_score_is_a_number_from_0_to_1(programs, answers, score):
    judge_with_harness(programs, f'{{"mbpp": {{"pass@1": {score}}}}}')
    with pytest.raises(UserError, match=r"not a number from 0 to 1; remove it"):
        read_programs("mbpp", programs)
    for path in answers:
        judge(path, [json.loads(score), 1])
    with pytest.raises(UserError, match=r"not a number from 0 to 1; remove it"):
        read_livebench(answers)


@pytest.mark.parametrize("metrics", ["[]", "{}", '{"mbpp": 1}', '{"mbpp": {}}', "{"])
def test_a_harness_result_of_another_form_is_one_line(programs, metrics):
    judge_with_harness(programs, metrics)
    with pytest.raises(UserError, match=r"remove it, and the"):
        read_programs("mbpp", programs)


def test_tests_that_changed_since_the_judgment_are_noticed(programs, tmp_path):
    tests = tmp_path / "mbpp.test.jsonl"
    tests.write_text("tests")
    write_rows(program_results_file(programs), [{"completion": f"print({n})", "passed": True} for n in (1, 2)])
    keep_hash_lines(program_results_file(programs), hash_lines([programs, tests]))
    assert read_programs("mbpp", programs).score == 1
    tests.write_text("other tests")
    with pytest.raises(UserError, match=r"another mbpp\.test\.jsonl"):
        read_programs("mbpp", programs)
    tests.unlink()  # another machine
    assert read_programs("mbpp", programs).score == 1


def test_the_command_that_is_typed_binds_the_result_to_the_answers(answers, tmp_path):
    for path in answers:
        judge(path, [1, 0])
    subprocess.run(["sh", "-c", command_to_type("coding", answers, "true")], cwd=tmp_path, check=True)
    assert read_livebench(answers).values == (1, 0, 1, 0)
    answers[0].write_text(answers[0].read_text().replace("101.0", "101.5"))
    with pytest.raises(UserError, match="was found with another"):
        read_livebench(answers)


def test_the_harness_is_given_the_place_of_its_result(tmp_path):
    programs = tmp_path / "a b.jsonl"
    command = command_to_type("mbpp", [programs], "accelerate")
    assert f"--metric_output_path '{harness_metrics_file(programs)}'" in command
