"""HumanEval and MBPP: programs out of prose, and files that the real evaluators take."""

import json
from dataclasses import astuple

import pytest

from inference_llms.tasks import human_eval, mbpp
from tests.inference_llms.support import (
    DATA,
    golden,
    golden_sampling,
    needs_data,
    needs_golden,
    pass_at_1,
    read_json_lines,
    replay,
    write_rows,
)


@needs_golden
def test_human_eval_prompt_sampling_rows_and_every_program_agree_with_the_published_scripts(tmp_path):
    expected = golden("human_eval")
    assert astuple(human_eval.SAMPLING) == golden_sampling("human_eval")
    assert human_eval.load_examples(None)[0].prompt == expected["prompt_example"]
    write_rows(tmp_path / "replay/human_eval.jsonl", [{**row, "id": row["task_id"]} for row in expected["rows"]])
    scores = replay(tmp_path, "--tasks", "human_eval", "--end_index", len(expected["rows"]))
    written = read_json_lines(tmp_path / "out/save_gen_codes_results/single_model/human_eval/model.jsonl")
    assert scores["human_eval"]["examples"] == len(written)
    assert [row["task_id"] for row in written] == [row["task_id"] for row in expected["rows"]]
    for row, published in zip(written, expected["rows"], strict=True):
        assert list(row) == expected["row_keys"]
        assert row["completion"] == published["processed"]
        assert row["all_code"] == published["completion"].replace("\t", "    ")


@needs_golden
@needs_data
def test_mbpp_prompts_sampling_and_every_program_agree_with_the_published_scripts(tmp_path):
    expected = golden("mbpp")
    assert astuple(mbpp.SAMPLING) == golden_sampling("mbpp")
    prompts = {example.id: example.prompt for example in mbpp.load_examples(DATA)}
    assert prompts[11] == expected["prompt_example"]
    assert prompts[493] == expected["prompt_493"]
    write_rows(tmp_path / "replay/mbpp.jsonl", [{**row, "id": row["task_id"]} for row in expected["rows"]])
    replay(tmp_path, "--tasks", "mbpp", "--end_index", len(expected["rows"]), "--data_dir", DATA)
    written = json.loads((tmp_path / "out/save_gen_codes_results/single_model/mbpp/model.jsonl").read_text())
    processed = [row["processed"] for row in expected["rows"]]
    assert written == processed + [[]] * (500 - len(processed))


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
def test_programs_out_of_awkward_completions(completion, human_eval_program, mbpp_program):
    assert human_eval.extract_program(completion) == human_eval_program
    assert mbpp.extract_program(completion) == mbpp_program


def test_human_eval_ids_are_sorted_as_text():
    assert [example.id for example in human_eval.load_examples(None)][:4] == [
        "HumanEval/0",
        "HumanEval/1",
        "HumanEval/10",
        "HumanEval/100",
    ]


def test_all_human_eval_solutions_pass_the_real_evaluator_and_empty_ones_fail_it(tmp_path):
    examples = human_eval.load_examples(None)
    solutions = {
        example.id: f"```python\n{example.row['prompt']}{example.row['canonical_solution']}\n```"
        for example in examples
    }
    write_rows(
        tmp_path / "replay/human_eval.jsonl",
        [{"id": name, "completion": completion} for name, completion in solutions.items()],
    )
    score = replay(tmp_path, "--tasks", "human_eval")["human_eval"]
    assert score["examples"] == 164
    assert "--problem_file" not in score["evaluator_command"]
    assert pass_at_1(score["evaluator_command"]) == 1.0

    write_rows(tmp_path / "replay/human_eval.jsonl", [{"id": name, "completion": ""} for name in solutions])
    score = replay(tmp_path, "--tasks", "human_eval", "--overwrite")["human_eval"]
    assert pass_at_1(score["evaluator_command"]) == 0.0


def test_a_slice_of_human_eval_is_judged_on_the_problems_that_were_attempted(tmp_path):
    chosen = human_eval.load_examples(None)[3:6]
    write_rows(
        tmp_path / "replay/human_eval.jsonl",
        [
            {"id": example.id, "completion": example.row["prompt"] + example.row["canonical_solution"]}
            for example in chosen[:2]
        ]
        + [{"id": chosen[2].id, "completion": "x"}],
    )
    score = replay(tmp_path, "--tasks", "human_eval", "--start_index", 3, "--end_index", 6)["human_eval"]
    assert len(score["files"]) == 2
    assert pass_at_1(score["evaluator_command"]) == pytest.approx(2 / 3)


@needs_data
@pytest.mark.parametrize(("number", "perfect"), [(500, True), (20, False)])
def test_the_500_mbpp_programs_pass_their_own_tests_after_the_run_and_empty_ones_fail(tmp_path, number, perfect):
    examples = mbpp.load_examples(DATA)[:number]
    write_rows(
        tmp_path / "replay/mbpp.jsonl",
        [{"id": example.id, "completion": example.row["code"] if perfect else ""} for example in examples],
    )
    score = replay(tmp_path, "--tasks", "mbpp", "--data_dir", DATA, "--end_index", number)["mbpp"]
    assert score["examples"] == number
    programs = json.loads((tmp_path / "out/save_gen_codes_results/single_model/mbpp/model.jsonl").read_text())
    assert len(programs) == 500
    write_rows(
        tmp_path / "samples.jsonl",
        [
            {"task_id": str(example.id), "completion": program}
            for example, (program,) in zip(examples, programs[:number], strict=True)
        ],
    )
    write_rows(
        tmp_path / "problems.jsonl",
        [
            {
                "task_id": str(example.id),
                "prompt": "",
                "entry_point": "None",
                "test": "\n".join(
                    [example.row["test_setup_code"], *example.row["test_list"], "def check(candidate): pass"]
                ),
            }
            for example in examples
        ],
    )
    command = f"evaluate_functional_correctness {tmp_path}/samples.jsonl --problem_file={tmp_path}/problems.jsonl"
    assert pass_at_1(command) == float(perfect)
