"""The two parts of a task: drawn by the seed, nothing in both."""

import json

import pytest

from inference_llms.tasks import gsm8k
from scripts.mixup_search.splits import split_task
from utils.errors import UserError


@pytest.fixture
def data_dir(tmp_path):
    """Ten questions, of which the last two ask the same."""
    rows = [{"question": f"What is {min(n, 8)} + 1?", "answer": f"#### {min(n, 8) + 1}"} for n in range(10)]
    (tmp_path / "gsm8k_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def prompts(examples):
    return [example.prompt for example in examples]


@pytest.mark.parametrize("seed", range(6))
def test_no_question_is_in_both_parts_though_the_set_asks_it_twice(data_dir, seed):
    parts = split_task(gsm8k.TASK, data_dir, None, 4, None, seed)
    assert len(parts.validation) == 4 and not set(prompts(parts.validation)) & set(prompts(parts.test))
    assert set(prompts(parts.validation)) | set(prompts(parts.test)) == set(prompts(gsm8k.TASK.load_examples(data_dir)))


def test_the_parts_depend_on_the_seed_alone(data_dir):
    first, again, other = (split_task(gsm8k.TASK, data_dir, None, 4, 3, seed) for seed in (0, 0, 1))
    assert first == again and first != other and len(first.test) == 3


def test_validation_from_files_of_their_own_takes_nothing_from_the_test_set(data_dir, tmp_path):
    own = tmp_path / "training"
    own.mkdir()
    row = {"question": "What is 90 + 1?", "answer": "#### 91"}
    (own / "gsm8k_test.jsonl").write_text(json.dumps(row) + "\n")
    parts = split_task(gsm8k.TASK, data_dir, own, 1, None, 0)
    assert "90 + 1" in parts.validation[0].prompt and len(parts.test) == 10


def test_the_test_set_itself_as_validation_data_leaves_out_what_was_drawn(data_dir):
    parts = split_task(gsm8k.TASK, data_dir, data_dir, 4, None, 0)
    assert not set(prompts(parts.validation)) & set(prompts(parts.test))


def test_too_many_and_missing_ones_are_told(data_dir, tmp_path):
    with pytest.raises(UserError, match="--num_validation 10"):
        split_task(gsm8k.TASK, data_dir, None, 10, None, 0)
    with pytest.raises(UserError, match="--validation_dir"):
        split_task(gsm8k.TASK, data_dir, tmp_path / "empty", 2, None, 0)
