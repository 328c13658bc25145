"""The two parts of a task: drawn by the seed, without a prompt in common."""

import json

import pytest

from inference_llms.tasks import gsm8k
from scripts.mixup_search.splits import split_task
from utils.errors import UserError


@pytest.fixture
def data_dir(tmp_path):
    """Ten questions, of which the last two are the same."""
    rows = [{"question": f"What is {min(n, 8)} + 1?", "answer": f"#### {min(n, 8) + 1}"} for n in range(10)]
    (tmp_path / "gsm8k_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def prompts(examples):
    return {example.prompt for example in examples}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("from_files", [False, True])
def test_no_prompt_is_in_both_parts_even_if_the_set_has_it_twice(data_dir, seed, from_files):
    parts = split_task(gsm8k.TASK, data_dir, data_dir if from_files else None, 4, None, seed)
    assert len(parts.validation) == 4 and not prompts(parts.validation) & prompts(parts.test)
    assert prompts(parts.validation) | prompts(parts.test) == prompts(gsm8k.TASK.load_examples(data_dir))


def test_the_parts_depend_on_the_seed_alone(data_dir):
    first, again, other = (split_task(gsm8k.TASK, data_dir, None, 4, 3, seed) for seed in (0, 0, 1))
    assert first == again and first != other and len(first.test) == 3
    assert first.digest() == again.digest() != other.digest()


def test_validation_from_other_files_takes_nothing_from_the_test_set(data_dir, tmp_path):
    training = tmp_path / "training"
    training.mkdir()
    row = {"question": "What is 90 + 1?", "answer": "#### 91"}
    (training / "gsm8k_test.jsonl").write_text(json.dumps(row) + "\n")
    parts = split_task(gsm8k.TASK, data_dir, training, 1, None, 0)
    assert "90 + 1" in parts.validation[0].prompt and len(parts.test) == 10


def test_too_few_examples_and_missing_files_are_one_line(data_dir, tmp_path):
    with pytest.raises(UserError, match=r"^--num_validation 10: gsm8k has 10 examples, .*give 9 or fewer$"):
        split_task(gsm8k.TASK, data_dir, None, 10, None, 0)
    with pytest.raises(UserError, match=r"^--validation_dir .*empty: has no gsm8k_test.jsonl; put it there$"):
        split_task(gsm8k.TASK, data_dir, tmp_path / "empty", 2, None, 0)
