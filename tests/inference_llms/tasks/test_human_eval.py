"""HumanEval and MBPP: programs out of prose, in files that the real evaluator reads."""

import json

import pytest

from inference_llms.tasks import human_eval, mbpp
from tests.inference_llms.support import DATA, needs_data, pass_at_1, replay, write_rows


@pytest.mark.parametrize(
    ("completion", "human_eval_program", "mbpp_program"),
    [
        ("```\nx = 1\n```", "```\nx = 1\n```", "```\nx = 1\n```"),
        ("a ### Response: b ### Response:\tx", "x", "x"),
        ("```python\nx = '```'\n```", "x = '", "x = '```'"),
        ("x\n# Test examples\ny", "x\n# Test examples\ny", "x"),
        ("x\r\ny", "x\ny", "x\r\ny"),
        ("The solution is: x\n\nThe answer is: y", "x", "x"),
        ("", "", ""),
    ],
)
def test_programs_are_extracted_from_awkward_completions(completion, human_eval_program, mbpp_program):
    assert human_eval.extract_program(completion) == human_eval_program
    assert mbpp.extract_program(completion) == mbpp_program


def score(tmp_path, completions: dict[str, str], *options: object) -> dict:
    rows = [{"id": name, "completion": completion} for name, completion in completions.items()]
    write_rows(tmp_path / "replay/human_eval.jsonl", rows)
    return replay(tmp_path, "--tasks", "human_eval", "--overwrite", *options)["human_eval"]


def test_all_solutions_pass_the_real_evaluator_and_empty_programs_fail(tmp_path):
    examples = human_eval.TASK.load_examples(None)
    assert [example.id for example in examples[:3]] == ["HumanEval/0", "HumanEval/1", "HumanEval/10"]
    solutions = {
        example.id: f"```python\n{example.row['prompt']}{example.row['canonical_solution']}\n```"
        for example in examples
    }
    found = score(tmp_path, solutions)
    assert found["examples"] == 164 and "--problem_file" not in found["evaluator_command"]
    assert pass_at_1(found["evaluator_command"]) == 1.0
    assert pass_at_1(score(tmp_path, dict.fromkeys(solutions, ""))["evaluator_command"]) == 0.0


def test_a_slice_is_scored_on_its_own_problems(tmp_path):
    chosen = human_eval.TASK.load_examples(None)[3:6]
    completions = {example.id: example.row["prompt"] + example.row["canonical_solution"] for example in chosen}
    completions[chosen[2].id] = "x"
    found = score(tmp_path, completions, "--start_index", 3, "--end_index", 6)
    assert len(found["files"]) == 2
    assert pass_at_1(found["evaluator_command"]) == pytest.approx(2 / 3)


@needs_data
@pytest.mark.parametrize(("number", "perfect"), [(500, True), (20, False)])
def test_published_mbpp_programs_pass_their_tests_and_empty_ones_fail(tmp_path, number, perfect):
    examples = mbpp.TASK.load_examples(DATA)[:number]
    write_rows(
        tmp_path / "replay/mbpp.jsonl",
        [{"id": example.id, "completion": example.row["code"] if perfect else ""} for example in examples],
    )
    found = replay(tmp_path, "--tasks", "mbpp", "--data_dir", DATA, "--end_index", number)["mbpp"]
    assert found["examples"] == number
    programs = json.loads((tmp_path / "out/save_gen_codes_results/single_model/mbpp/model.jsonl").read_text())
    assert len(programs) == 500
    problems = [mbpp.make_problem(example.row) for example in examples]
    names = [problem["task_id"] for problem in problems]
    write_rows(tmp_path / "problems.jsonl", problems)
    samples = zip(names, programs[:number], strict=True)
    write_rows(tmp_path / "samples.jsonl", [{"task_id": name, "completion": program} for name, (program,) in samples])
    command = f"evaluate_functional_correctness {tmp_path}/samples.jsonl --problem_file={tmp_path}/problems.jsonl"
    assert pass_at_1(command) == float(perfect)
